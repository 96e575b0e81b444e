package config

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// names are the flags of every setting there is: those of the program itself and
// those of the others, since one environment or file may serve all of them.
func names(own *kong.Node) (map[string]bool, error) {
	known := map[string]bool{}
	add := func(f *kong.Flag) {
		if isSetting(f) {
			known[f.Name] = true
		}
	}
	eachFlag(own, add)
	for _, other := range []any{&Collector{}, &Sink{}, &Tool{}} {
		k, err := kong.New(other, shape()...)
		if err != nil {
			return nil, fmt.Errorf("list the settings: %w", err)
		}
		eachFlag(k.Model.Node, add)
	}
	return known, nil
}

// unknown returns an error for the first name, in order, that is no setting.
func (s *source) unknown(known map[string]bool) error {
	for _, name := range slices.Sorted(maps.Keys(s.env)) {
		flag := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, envPrefix), "_", "-"))
		if known[flag] && Env(flag) == name || foreign(name, s.env[name]) {
			continue
		}
		if near := nearest(flag, known); near != "" {
			return fmt.Errorf("%s is not a setting: want %s, or unset it", name, Env(near))
		}
		return fmt.Errorf("%s is not a setting: want one that --help lists, or unset it", name)
	}
	for _, name := range slices.Sorted(maps.Keys(s.file)) {
		if known[name] && name != configFlag {
			continue
		}
		where := fmt.Sprintf("%s, line %d: %q is not a setting", s.path, s.file[name].line, name)
		if near := nearest(name, known); near != "" && near != configFlag {
			return fmt.Errorf("%s: want %q, or leave it out", where, near)
		}
		return fmt.Errorf("%s: want one that --help lists, without the dashes in front", where)
	}
	return nil
}

// foreign reports variables that begin like ours and are not. Kubernetes gives
// every container the addresses of the services around it, so a service called
// sluice-collector makes SLUICE_COLLECTOR_SERVICE_HOST and SLUICE_COLLECTOR_PORT
// (pods/services, "environment variables"). SLUICE_TEST_ is for tests, and the two
// names are what internal/embedded tells the processes it starts.
func foreign(name, value string) bool {
	if strings.HasPrefix(name, "SLUICE_TEST_") || name == "SLUICE_KAFKA_DIR" || name == "SLUICE_ENGINE_CHILD" {
		return true
	}
	link := regexp.MustCompile(`^SLUICE(_[A-Z0-9_]+)?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$`)
	if link.MatchString(name) {
		return true
	}
	scheme, _, ok := strings.Cut(value, "://")
	return ok && strings.HasSuffix(name, "_PORT") && slices.Contains([]string{"tcp", "udp", "sctp"}, scheme)
}

// nearest is the known name that takes the fewest edits, if they are few enough
// for it to be a slip; else it is empty.
func nearest(name string, known map[string]bool) string {
	best, least := "", max(2, len(name)/4)+1
	for _, candidate := range slices.Sorted(maps.Keys(known)) {
		if d := edits(name, candidate); d < least {
			best, least = candidate, d
		}
	}
	return best
}

// edits is how many bytes must be put in, taken out or changed to make b of a
// (Levenshtein's distance, row by row). Names over 64 bytes are no slip.
func edits(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := diagonal
			if a[i-1] != b[j-1] {
				change++
			}
			diagonal = row[j]
			row[j] = min(change, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}
