package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// Setting describes one setting.
type Setting struct {
	Env      string // SLUICE_X_Y
	Flag     string // x-y: --x-y, and the key in the file
	Group    string // chapter
	Help     string
	Unit     string
	Default  string   // empty: none; differs by program for admin-listen
	Wrong    string   // what happens when it is wrong or too small
	Secret   bool     // never printed
	Programs []string // collector, sink, sluice
}

// Settings lists every setting, in the order of the help: chapter by chapter.
func Settings() ([]Setting, error) {
	var out []Setting
	for _, p := range []struct {
		name    string
		grammar any
	}{{"collector", &Collector{}}, {"sink", &Sink{}}, {"sluice", &Tool{}}} {
		k, err := kong.New(p.grammar, shape()...)
		if err != nil {
			return nil, fmt.Errorf("list the settings of %s: %w", p.name, err)
		}
		eachFlag(k.Model.Node, func(f *kong.Flag) {
			if !isSetting(f) {
				return
			}
			i := slices.IndexFunc(out, func(s Setting) bool { return s.Flag == f.Name })
			if i >= 0 {
				if out[i].Default != f.Default {
					out[i].Default += " / " + f.Default
				}
				out[i].Programs = append(out[i].Programs, p.name)
				return
			}
			s := Setting{
				Env: Env(f.Name), Flag: f.Name, Help: f.Help, Unit: f.Tag.Get("unit"),
				Default: f.Default, Wrong: f.Tag.Get("wrong"), Secret: f.Tag.Has("secret"),
				Programs: []string{p.name},
			}
			if f.Group != nil {
				s.Group = f.Group.Key
			}
			out = append(out, s)
		})
	}
	order := groups()
	at := func(s Setting) int {
		return slices.IndexFunc(order, func(g kong.Group) bool { return g.Key == s.Group })
	}
	slices.SortStableFunc(out, func(a, b Setting) int { return at(a) - at(b) })
	return out, nil
}

// Reference is docs/settings.md.
func Reference() ([]byte, error) {
	settings, err := Settings()
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	b.WriteString(preamble)
	for _, g := range groups() {
		fmt.Fprintf(&b, "\n## %s\n", g.Title)
		for _, s := range settings {
			if s.Group != g.Key {
				continue
			}
			def := "none"
			if s.Default != "" {
				def = "`" + s.Default + "`"
			}
			fmt.Fprintf(&b, "\n### `%s`\n", s.Env)
			fmt.Fprintf(&b, "`--%s` · %s · %s · default %s\n\n", s.Flag, strings.Join(s.Programs, ", "), s.Unit, def)
			// What looks like a tag to Markdown is a placeholder here.
			fmt.Fprintf(&b, "%s\n\n*If it is wrong or too small:* %s\n", strings.ReplaceAll(s.Help, "<", "&lt;"), s.Wrong)
		}
	}
	return []byte(b.String()), nil
}

const preamble = `# Settings

<!-- Written by internal/config from its structs: go test ./internal/config -update -->

Every setting has three names: the flag ` + "`--x-y`" + `, the environment variable ` + "`SLUICE_X_Y`" + ` and the key ` + "`x-y`" + `
(or ` + "`x_y`" + `) in the YAML file that ` + "`--config`" + ` names. Where it is given more than once, the flag wins over the
environment, the environment over the file, the file over the default.

- A setting that cannot be right stops the start, with exit code 2 and one line that names the setting, the value
  and what would do. So does a ` + "`SLUICE_`" + ` variable or a key that is no setting of any of the programs; one
  environment or file may serve all of them. A variable that is set to nothing counts as not set. Variables that
  Kubernetes makes for services (` + "`SLUICE_…_SERVICE_HOST`, `SLUICE_…_PORT`" + ` and so on) are passed over, and so is
  ` + "`SLUICE_TEST_…`" + `.
- Sizes: ` + "`900KiB`, `10GiB`" + ` (powers of 1,024), ` + "`5MB`" + ` (powers of 1,000) or plain bytes. Durations: ` + "`250ms`, `10s`, `720h`" + `.
- Passwords are not printed or logged. On a command line other users of the machine can read them: use the
  environment or the file.
- A soft limit on memory is set by the services themselves: the collector 86 MiB, and one byte more for each byte
  in flight above 40 MiB; the sink 64 MiB and one and a half times ` + "`SLUICE_SINK_FLUSH_BYTES`" + ` (448 MiB with the default).
  ` + "`GOMEMLIMIT`" + ` goes before it (for example nine tenths of the container's limit).
`
