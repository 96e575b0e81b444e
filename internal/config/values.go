package config

import (
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Bytes is a size. It is written as a number with a unit (KiB, MiB, GiB, TiB are
// powers of 1,024; kB, MB, GB, TB powers of 1,000; B or nothing is bytes) and
// never negative.
type Bytes int64

const (
	wantBytes     = "a size such as 900KiB, 10GiB, 5MB or 1048576 (bytes)"
	wantDuration  = "a duration such as 250ms, 10s, 15m or 720h"
	wantAddresses = "host:port, several separated by commas"
	wantDSN       = "clickhouse://[user[:password]@]host:9000/database"
	wantSASL      = "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"
	wantLevel     = "debug, info, warn or error"
	wantNumber    = "a whole number"
)

// unit is how many bytes a unit, in lower case, stands for; 0 for none of them.
func unit(name string) int64 {
	switch name {
	case "", "b":
		return 1
	case "kb":
		return 1e3
	case "mb":
		return 1e6
	case "gb":
		return 1e9
	case "tb":
		return 1e12
	case "kib":
		return 1 << 10
	case "mib":
		return 1 << 20
	case "gib":
		return 1 << 30
	case "tib":
		return 1 << 40
	}
	return 0
}

// ParseBytes reads a size. A fraction is fine where it comes out as whole bytes
// (1.5KiB). Units are read in any case; a bare K, M or G is refused, since it
// means 1,000 to some and 1,024 to others.
func ParseBytes(s string) (Bytes, error) {
	text := strings.TrimSpace(s)
	digits := strings.TrimLeft(text, "0123456789.")
	number, name := text[:len(text)-len(digits)], strings.ToLower(strings.TrimSpace(digits))
	factor := unit(name)
	// 19 digits are the largest int64; the rest leaves room for a fraction.
	if factor == 0 || len(number) > 32 {
		return 0, errors.New(wantBytes)
	}
	r, ok := new(big.Rat).SetString(number)
	if !ok {
		return 0, errors.New(wantBytes)
	}
	r.Mul(r, new(big.Rat).SetInt64(factor))
	if !r.IsInt() || !r.Num().IsInt64() {
		return 0, errors.New(wantBytes)
	}
	return Bytes(r.Num().Int64()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *Bytes) UnmarshalText(text []byte) error {
	v, err := ParseBytes(string(text))
	if err != nil {
		return err
	}
	*b = v
	return nil
}

// MarshalText implements encoding.TextMarshaler; ParseBytes reads it back.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// String writes the size in the largest binary unit that divides it.
func (b Bytes) String() string {
	for _, u := range []string{"TiB", "GiB", "MiB", "KiB"} {
		if f := unit(strings.ToLower(u)); b != 0 && int64(b)%f == 0 {
			return strconv.FormatInt(int64(b)/f, 10) + u
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// Addresses are one or more host:port pairs, written with commas between them.
type Addresses []string

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *Addresses) UnmarshalText(text []byte) error {
	var out Addresses
	for part := range strings.SplitSeq(string(text), ",") {
		part = strings.TrimSpace(part)
		host, port, err := net.SplitHostPort(part)
		if err != nil || host == "" || strings.ContainsAny(host, " /@") || !validPort(port, 1) {
			return errors.New(wantAddresses)
		}
		out = append(out, part)
	}
	*a = out
	return nil
}

// String writes the addresses with commas between them.
func (a Addresses) String() string { return strings.Join(a, ",") }

func validPort(s string, lowest uint64) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n >= lowest
}

// masked is what is printed in place of a secret.
const masked = "******"

// Secret is a value that is not printed, logged or marshalled.
type Secret string

// Reveal returns the value itself.
func (s Secret) Reveal() string { return string(s) }

// String hides the value, and shows whether there is one.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return masked
}

// GoString hides the value from %#v.
func (s Secret) GoString() string { return strconv.Quote(s.String()) }

// MarshalText hides the value from JSON and YAML.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue hides the value from slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// DSN names a ClickHouse and may carry its password, which is not printed.
type DSN string

// UnmarshalText implements encoding.TextUnmarshaler. It checks the form: the
// client reads the rest.
func (d *DSN) UnmarshalText(text []byte) error {
	// url.Parse's error quotes what it was given, password included.
	u, err := url.Parse(string(text))
	if err != nil || u.Scheme != "clickhouse" || u.Fragment != "" {
		return errors.New(wantDSN)
	}
	var hosts Addresses
	if err := hosts.UnmarshalText([]byte(u.Host)); err != nil {
		return errors.New(wantDSN)
	}
	*d = DSN(text)
	return nil
}

// Reveal returns the DSN with its password.
func (d DSN) Reveal() string { return string(d) }

// String writes the DSN without its password.
func (d DSN) String() string {
	u, err := url.Parse(string(d))
	if err != nil {
		return masked
	}
	if u.User != nil {
		if _, has := u.User.Password(); has {
			u.User = url.UserPassword(u.User.Username(), masked)
		}
	}
	if q := u.Query(); q.Has("password") {
		q.Set("password", masked)
		u.RawQuery = q.Encode()
	}
	// The stars are the only thing in it that a URL would escape.
	return strings.ReplaceAll(u.String(), "%2A", "*")
}

// GoString hides the password from %#v.
func (d DSN) GoString() string { return strconv.Quote(d.String()) }

// MarshalText hides the password from JSON and YAML.
func (d DSN) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// LogValue hides the password from slog.
func (d DSN) LogValue() slog.Value { return slog.StringValue(d.String()) }

// SASL is how Kafka is told who is asking, in Kafka's own spelling; empty: not
// at all.
type SASL string

// The mechanisms.
const (
	Plain       SASL = "PLAIN"
	ScramSHA256 SASL = "SCRAM-SHA-256"
	ScramSHA512 SASL = "SCRAM-SHA-512"
)

// UnmarshalText implements encoding.TextUnmarshaler; it reads any case.
func (m *SASL) UnmarshalText(text []byte) error {
	v := SASL(strings.ToUpper(strings.TrimSpace(string(text))))
	if !slices.Contains([]SASL{"", Plain, ScramSHA256, ScramSHA512}, v) {
		return errors.New(wantSASL)
	}
	*m = v
	return nil
}

// Env is the environment variable of a flag: ack-timeout → SLUICE_ACK_TIMEOUT.
func Env(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

const envPrefix = "SLUICE_"

// refuse names a setting, the value it has and what would do.
func refuse(flag string, value any, want string) error {
	switch v := value.(type) {
	case string:
		value = strconv.Quote(v)
	case SASL:
		value = strconv.Quote(string(v))
	}
	return fmt.Errorf("%s=%v: want %s", Env(flag), value, want)
}
