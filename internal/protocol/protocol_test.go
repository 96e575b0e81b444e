package protocol

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
	"sluice/pkg/schema"
)

func TestAccept(t *testing.T) {
	id := batch.ForKey("p", "k")
	a := Accept(Result{BatchID: id, Accepted: 98, Durable: batch.InKafka, BodyBytes: 7,
		Rejected: []schema.Rejected{{Index: 3, Code: schema.CodeMissingField, Field: "unit_id", Message: "unit_id is missing", Bytes: []byte("secret")}}})
	assert.Equal(t, 202, a.Status)
	assert.Equal(t, "application/json", a.ContentType)
	assert.JSONEq(t, `{"batch_id":"`+id.String()+`","accepted":98,"rejected":[{"index":3,"code":"missing_field","field":"unit_id","message":"unit_id is missing"}],"durable":"kafka","duplicate":false}`, string(a.Body))

	a = Accept(Result{BatchID: id, Accepted: 1, Durable: batch.InSpool, Duplicate: true})
	assert.Equal(t, 200, a.Status)
	assert.JSONEq(t, `{"batch_id":"`+id.String()+`","accepted":1,"rejected":[],"durable":"spool","duplicate":true}`, string(a.Body))
}

func TestRefuse(t *testing.T) {
	cause := errors.New("cause")
	p := NewProblem(CodeNotDurable, "no place").After(1200 * time.Millisecond).Because(cause)
	assert.ErrorIs(t, p, cause)
	assert.EqualError(t, p, "not_durable: no place")
	a := Refuse(*p)
	assert.Equal(t, 503, a.Status)
	assert.Equal(t, "application/problem+json", a.ContentType)
	assert.Equal(t, map[string]string{"Retry-After": "2"}, a.Header, "whole seconds, never sooner")
	assert.JSONEq(t, `{"title":"Service Unavailable","status":503,"code":"not_durable","detail":"no place"}`, string(a.Body))
	assert.NotContains(t, string(a.Body), "cause")

	p = NewProblem(CodeAllRejected, "none")
	p.BatchID = batch.ForKey("p", "k")
	p.Rejected = []schema.Rejected{{Index: 0, Code: schema.CodeInvalidType, Message: "no object"}}
	a = Refuse(*p)
	assert.Equal(t, 422, a.Status)
	assert.Nil(t, a.Header)
	assert.JSONEq(t, `{"title":"Unprocessable Entity","status":422,"code":"all_rejected","detail":"none","batch_id":"`+p.BatchID.String()+`","rejected":[{"index":0,"code":"invalid_type","message":"no object"}]}`, string(a.Body))
}

func TestCodes(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range Codes() {
		assert.False(t, seen[c.Code], "%s is there twice", c.Code)
		seen[c.Code] = true
		assert.Equal(t, c.Status, NewProblem(c.Code, "").Status)
		assert.NotEmpty(t, http.StatusText(c.Status))
		assert.NotEmpty(t, c.Meaning)
		assert.NotEmpty(t, c.Do)
		assert.True(t, c.Status >= 400 && c.Status < 600, c.Code)
	}
	for _, code := range []string{schema.BodyMalformed, schema.BodyTooDeep, schema.BodyEmpty, schema.BodyTooManyEvents} {
		assert.True(t, seen[code], "the code of a body that cannot be decoded: %s", code)
	}
	assert.Equal(t, 500, NewProblem("no such code", "").Status)
}

func TestWriteKey(t *testing.T) {
	for name, tt := range map[string]struct {
		url     string
		headers map[string]string
		want    string
	}{
		"none":                   {"/", nil, ""},
		"bearer":                 {"/", map[string]string{"Authorization": "Bearer abc"}, "abc"},
		"bearer, any case":       {"/", map[string]string{"Authorization": "bearer  abc "}, "abc"},
		"basic is none":          {"/", map[string]string{"Authorization": "Basic abc"}, ""},
		"api key":                {"/", map[string]string{"X-API-Key": "abc"}, "abc"},
		"query":                  {"/?a=b&k=abc%20d", nil, "abc d"},
		"the first counts":       {"/?k=query", map[string]string{"Authorization": "Bearer bearer", "X-API-Key": "header"}, "bearer"},
		"basic beside an apikey": {"/", map[string]string{"Authorization": "Basic abc", "X-API-Key": "header"}, "header"},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest("POST", tt.url, nil)
			for k, v := range tt.headers {
				r.Header.Set(k, v)
			}
			assert.Equal(t, tt.want, WriteKey(r))
		})
	}
}

func TestHeaderIdempotencyKey(t *testing.T) {
	for name, tt := range map[string]struct {
		values []string
		want   string
		ok     bool
	}{
		"absent":       {nil, "", true},
		"a UUID":       {[]string{"0198c5a2-7d1e-7c3b-9a50-3f2d1c0b9a87"}, "0198c5a2-7d1e-7c3b-9a50-3f2d1c0b9a87", true},
		"256 bytes":    {[]string{strings.Repeat("~", 256)}, strings.Repeat("~", 256), true},
		"257 bytes":    {[]string{strings.Repeat("~", 257)}, "", false},
		"empty":        {[]string{""}, "", false},
		"a space":      {[]string{"a b"}, "", false},
		"not ASCII":    {[]string{"ä"}, "", false},
		"control":      {[]string{"a\x7f"}, "", false},
		"twice":        {[]string{"a", "b"}, "", false},
		"twice as one": {[]string{"a", "a"}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			h := http.Header{}
			for _, v := range tt.values {
				h.Add("Idempotency-Key", v)
			}
			got, p := HeaderIdempotencyKey(h)
			assert.Equal(t, tt.want, got)
			if tt.ok {
				assert.Nil(t, p)
			} else {
				require.NotNil(t, p)
				assert.Equal(t, CodeBadIdempotencyKey, p.Code)
			}
		})
	}
}
