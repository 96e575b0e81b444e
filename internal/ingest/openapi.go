package ingest

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"sluice/internal/protocol"
)

//go:embed openapi.json
var openAPIDocument []byte

// OpenAPI returns the API's description, OpenAPI 3.1 in JSON.
func OpenAPI() []byte { return bytes.Clone(openAPIDocument) }

// CheckOpenAPI compares the description with the routes of a collector that has
// these endpoints. It returns an error that names every route which is not
// described, and every description of a route that is not there.
func CheckOpenAPI(endpoints []protocol.Endpoint) error {
	var doc struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}
	if err := json.Unmarshal(openAPIDocument, &doc); err != nil {
		return fmt.Errorf("read the OpenAPI document: %w", err)
	}
	described := map[string]bool{}
	for path, methods := range doc.Paths {
		// What the document calls {key} is any last segment here.
		if i := strings.LastIndexByte(path, '/'); strings.HasPrefix(path[i+1:], "{") {
			path = path[:i+1] + "*"
		}
		for m, operation := range methods {
			if m != "parameters" && operation != nil {
				described[strings.ToUpper(m)+" "+path] = true
			}
		}
	}
	served := map[string]bool{}
	for path, r := range builtin() {
		for m := range r.methods {
			served[m+" "+path] = true
		}
	}
	for _, ep := range endpoints {
		for _, m := range ep.Methods {
			served[m+" "+ep.Path] = true
		}
	}
	var errs []error
	for _, r := range slices.Sorted(maps.Keys(served)) {
		if !described[r] {
			errs = append(errs, fmt.Errorf("%s is not described", r))
		}
	}
	for _, r := range slices.Sorted(maps.Keys(described)) {
		if !served[r] {
			errs = append(errs, fmt.Errorf("%s is described, and there is no such route", r))
		}
	}
	return errors.Join(errs...)
}
