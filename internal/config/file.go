package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxFile bounds the file of settings.
const maxFile = 1 << 20

// fileValue is one setting as the file writes it.
type fileValue struct {
	text string
	line int
}

// readFile reads settings from a YAML file, by flag name.
func readFile(path string) (map[string]fileValue, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", Env(configFlag), err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", Env(configFlag), err)
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("%s=%q: want a file of at most %v", Env(configFlag), path, Bytes(maxFile))
	}
	values, err := decodeFile(text)
	if err != nil {
		return nil, fmt.Errorf("%s, %w", path, err)
	}
	return values, nil
}

// decodeFile reads one YAML document: a mapping of settings to single values or
// lists. Values are kept as they are written, so that all sources are read by
// the same rules (a duration is not a number of nanoseconds here), and with
// their line, so that an error can say where to look.
func decodeFile(text []byte) (map[string]fileValue, error) {
	dec := yaml.NewDecoder(strings.NewReader(string(text)))
	var doc, second yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		return nil, fmt.Errorf("which is not YAML: %w", err)
	}
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, errors.New("which has a second document: want one")
	}
	values := map[string]fileValue{}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return values, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("line %d: want settings, each as key: value", root.Line)
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, node := root.Content[i], root.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			return nil, fmt.Errorf("line %d: want the name of a setting before the colon", key.Line)
		}
		name := strings.ReplaceAll(key.Value, "_", "-")
		if _, twice := values[name]; twice {
			return nil, fmt.Errorf("line %d: %q comes twice", key.Line, key.Value)
		}
		v, err := scalar(node)
		if err != nil {
			return nil, fmt.Errorf("line %d: %q: %w", key.Line, key.Value, err)
		}
		values[name] = fileValue{text: v, line: key.Line}
	}
	return values, nil
}

var errNotScalar = errors.New("want a single value or a list of them; the keys of a group are written out, as kafka-brokers")

// scalar is a value as text; a list becomes one with commas.
func scalar(n *yaml.Node) (string, error) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	switch n.Kind {
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			return "", nil
		}
		return n.Value, nil
	case yaml.SequenceNode:
		parts := make([]string, 0, len(n.Content))
		for _, item := range n.Content {
			if item.Kind != yaml.ScalarNode {
				return "", errNotScalar
			}
			parts = append(parts, item.Value)
		}
		return strings.Join(parts, ","), nil
	}
	return "", errNotScalar
}
