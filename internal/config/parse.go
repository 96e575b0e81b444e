package config

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"
)

// ErrHelp is returned when the help was asked for and has been printed: there is
// nothing more to do, and nothing wrong.
var ErrHelp = errors.New("help was printed")

// UsageError is a command line, environment or file that cannot be right. Its
// text is one line that names the setting, the value and what would do.
type UsageError struct{ text string }

// Error returns the line.
func (e *UsageError) Error() string { return e.text }

// ExitCode is what the process should exit with: 2.
func (*UsageError) ExitCode() int { return 2 }

// ExitCode is what a program whose run ended with err exits with: 0 for nil and
// ErrHelp, 2 for a *UsageError, what an error with a method ExitCode says (3: a
// problem was found), else 1.
func ExitCode(err error) int {
	// The end of a child process has such a method too, and is an ordinary failure.
	var coded interface {
		error
		ExitCode() int
	}
	var child *exec.ExitError
	switch {
	case err == nil, errors.Is(err, ErrHelp):
		return 0
	case errors.As(err, &coded) && !errors.As(err, &child):
		return coded.ExitCode()
	}
	return 1
}

// Program is how a program presents itself in its help.
type Program struct {
	Name        string
	Description string
}

// ParseCollector reads the collector's settings. args are without the program's
// name, environ is as os.Environ gives it; the help, if asked for, goes to
// stdout. It returns ErrHelp or a *UsageError.
func ParseCollector(args, environ []string, stdout, stderr io.Writer) (Collector, error) {
	var c Collector
	_, err := Parse(&c, Program{
		Name: "collector",
		Description: "Accepts batches of exposure logs over HTTP and acknowledges each once it is safe in Kafka or in the spool on disk. " +
			"\"collector healthcheck\", with the same settings, asks a running collector whether it is ready.",
	}, args, environ, stdout, stderr)
	return c, err
}

// ParseSink reads the sink's settings, as ParseCollector does.
func ParseSink(args, environ []string, stdout, stderr io.Writer) (Sink, error) {
	var s Sink
	_, err := Parse(&s, Program{
		Name: "sink",
		Description: "Drains Kafka into ClickHouse, each batch once. " +
			"\"sink healthcheck\", with the same settings, asks a running sink whether it is ready.",
	}, args, environ, stdout, stderr)
	return s, err
}

// Parse fills grammar, a pointer to a struct with kong's tags, in which the
// groups of this package may be embedded. A field for the file of settings
// (Process.Config) is looked for at the top level only. More options, such as
// bindings, are for programs with verbs. It returns ErrHelp, a *UsageError, or,
// for a grammar that kong does not take, another error.
func Parse(grammar any, p Program, args, environ []string, stdout, stderr io.Writer, more ...kong.Option) (*kong.Context, error) {
	src := &source{env: environment(environ)}
	helped := false
	options := append([]kong.Option{
		kong.Name(p.Name),
		kong.Description(p.Description),
		kong.Writers(stdout, stderr),
		// Only the help ends a program from inside kong.
		kong.Exit(func(int) { helped = true }),
		kong.WithBeforeResolve(func(ctx *kong.Context) error {
			if helped {
				return nil
			}
			return src.load(ctx)
		}),
		kong.Resolvers(src),
	}, shape()...)
	k, err := kong.New(grammar, append(options, more...)...)
	if err != nil {
		return nil, fmt.Errorf("build the command line of %s: %w", p.Name, err)
	}
	ctx, err := k.Parse(args)
	switch {
	case helped:
		return ctx, ErrHelp
	case err != nil:
		return ctx, &UsageError{text: src.explain(k, err)}
	}
	return ctx, nil
}

// shape are the options by which values are read and the help is written.
func shape() []kong.Option {
	return []kong.Option{
		kong.TypeMapper(reflect.TypeFor[time.Duration](), mapper(time.ParseDuration, wantDuration)),
		kong.TypeMapper(reflect.TypeFor[Bytes](), mapper(ParseBytes, wantBytes)),
		kong.TypeMapper(reflect.TypeFor[Addresses](), mapper(fromText[Addresses], wantAddresses)),
		kong.TypeMapper(reflect.TypeFor[DSN](), mapper(fromText[DSN], wantDSN)),
		kong.TypeMapper(reflect.TypeFor[SASL](), mapper(fromText[SASL], wantSASL)),
		kong.TypeMapper(reflect.TypeFor[slog.Level](), mapper(fromText[slog.Level], wantLevel)),
		kong.TypeMapper(reflect.TypeFor[int](), mapper(strconv.Atoi, wantNumber)),
		kong.ValueFormatter(describe),
		kong.ConfigureHelp(kong.HelpOptions{WrapUpperBound: 110}),
		kong.ExplicitGroups(groups()),
		kong.PostBuild(func(k *kong.Kong) error {
			eachFlag(k.Model.Node, func(f *kong.Flag) {
				if u := f.Tag.Get("unit"); u != "" && f.PlaceHolder == "" {
					f.PlaceHolder = strings.ToUpper(strings.ReplaceAll(u, " ", "-"))
				}
			})
			return nil
		}),
	}
}

// groups are the chapters of the help and of docs/settings.md, in order.
func groups() []kong.Group {
	return []kong.Group{
		{Key: "listening", Title: "Listening"},
		{Key: "access", Title: "Access"},
		{Key: "limits", Title: "Limits of a request"},
		{Key: "durability", Title: "Durability"},
		{Key: "blocks", Title: "Blocks and the consumer group"},
		{Key: "clickhouse", Title: "ClickHouse"},
		{Key: "kafka", Title: "Kafka"},
		{Key: "topics", Title: "Topics"},
		{Key: "embedded", Title: "Everything on this machine (sluice up)"},
		{Key: "process", Title: "Process"},
	}
}

// describe is a flag's line in the help.
func describe(v *kong.Value) string {
	if v.Flag == nil || !isSetting(v.Flag) {
		return v.Help
	}
	unit, def := v.Tag.Get("unit"), v.Default
	if def == "" {
		def = "none"
	}
	return fmt.Sprintf("%s (%s; %s; default %s)", v.Help, Env(v.Name), unit, def)
}

func isSetting(f *kong.Flag) bool { return f.Tag != nil && f.Tag.Has("wrong") }

// eachFlag visits the flags of a node and of everything below it.
func eachFlag(n *kong.Node, visit func(*kong.Flag)) {
	for _, f := range n.Flags {
		visit(f)
	}
	for _, child := range n.Children {
		eachFlag(child, visit)
	}
}

// valueError is a value that its flag's type cannot read.
type valueError struct {
	flag   *kong.Value
	value  string
	secret bool
	want   string
}

func (e *valueError) Error() string {
	shown := strconv.Quote(e.value)
	if e.secret {
		shown = masked
	}
	name := "--" + e.flag.Name
	if e.flag.Flag != nil && isSetting(e.flag.Flag) {
		name = Env(e.flag.Name)
	}
	return fmt.Sprintf("%s=%s: want %s", name, shown, e.want)
}

// mapper reads one token of any source with parse.
func mapper[T any](parse func(string) (T, error), want string) kong.MapperFunc {
	return func(ctx *kong.DecodeContext, target reflect.Value) error {
		text := ""
		if token, err := ctx.Scan.PopValue("value"); err == nil {
			text = fmt.Sprint(token.Value)
		}
		v, err := parse(text)
		if err != nil {
			return &valueError{flag: ctx.Value, value: text, secret: ctx.Value.Tag.Has("secret"), want: want}
		}
		target.Set(reflect.ValueOf(v))
		return nil
	}
}

// fromText reads a value that implements encoding.TextUnmarshaler.
func fromText[T any, P interface {
	*T
	UnmarshalText([]byte) error
}](s string) (T, error) {
	var v T
	err := P(&v).UnmarshalText([]byte(s))
	return v, err
}

// environment makes a map of what os.Environ gives. A variable that is set to
// nothing counts as not set: that is what an orchestrator passes on for one that
// its user has not set.
func environment(environ []string) map[string]string {
	env := map[string]string{}
	for _, kv := range environ {
		if name, value, _ := strings.Cut(kv, "="); strings.HasPrefix(name, envPrefix) && value != "" {
			env[name] = value
		}
	}
	return env
}

// source answers kong where a setting that is not on the command line comes
// from. It implements kong.Resolver.
type source struct {
	env    map[string]string
	path   string // of the file; empty: none
	file   map[string]fileValue
	loaded bool
}

// Validate implements kong.Resolver; what is unknown was found by load.
func (*source) Validate(*kong.Application) error { return nil }

// Resolve implements kong.Resolver: environment, then file.
func (s *source) Resolve(_ *kong.Context, _ *kong.Path, f *kong.Flag) (any, error) {
	if !isSetting(f) {
		return nil, nil
	}
	if v, ok := s.env[Env(f.Name)]; ok {
		return v, nil
	}
	if v := s.file[f.Name]; v.text != "" {
		return v.text, nil
	}
	return nil, nil
}

// load reads the file, if one is named, and looks for names that nobody knows.
// kong calls it once for each part of the command line.
func (s *source) load(ctx *kong.Context) error {
	if s.loaded {
		return nil
	}
	s.loaded = true
	known, err := names(ctx.Model.Node)
	if err != nil {
		return err
	}
	for _, f := range ctx.Model.Flags {
		if f.Name == configFlag && isSetting(f) {
			s.path, _ = ctx.FlagValue(f).(string)
			if s.path == "" {
				s.path = s.env[Env(configFlag)]
			}
		}
	}
	if s.path != "" {
		if s.file, err = readFile(s.path); err != nil {
			return err
		}
	}
	return s.unknown(known)
}

const configFlag = "config"

// explain makes one line of kong's error. It names settings by their environment
// variables, and says which line of the file a value came from.
func (s *source) explain(k *kong.Kong, err error) string {
	text := err.Error()
	var bad *valueError
	name := ""
	switch flag := regexp.MustCompile(`^--([a-z0-9-]+):? `).FindStringSubmatch(text); {
	case errors.As(err, &bad):
		name, text = bad.flag.Name, bad.Error()
	case flag != nil:
		eachFlag(k.Model.Node, func(f *kong.Flag) {
			if f.Name == flag[1] && isSetting(f) {
				name = f.Name
			}
		})
		if name != "" {
			text = Env(name) + strings.TrimPrefix(text, "--"+name)
		}
	}
	if v, ok := s.file[name]; ok && s.env[Env(name)] == "" && name != "" {
		text = fmt.Sprintf("%s, line %d: %s", s.path, v.line, text)
	}
	return strings.ReplaceAll(text, "\n", " ")
}
