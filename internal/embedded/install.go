package embedded

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// engineVersion is the version of the npm packages in engine/package.json.
const engineVersion = "26.7.3-stable.1"

//go:embed engine/package.json engine/package-lock.json engine/.npmrc
var engineFiles embed.FS

// ErrMissingTool is returned when a program that an installation needs is not there
// or too old. The error is one line that says what to install.
var ErrMissingTool = errors.New("cannot install")

// EnsureEngine makes sure that ClickHouse's library is installed and returns its
// path. It is installed with npm, in the versions and, for linux-x64, with the hash
// of this package's lock file, into a folder named after version and machine under
// dir; dir is SLUICE_ENGINE_DIR, or the user's cache directory, if it is empty.
// Several processes may call it at once: one installs, the others wait. A process
// that dies in the middle leaves nothing that would be taken for an engine.
// progress, if not nil, is shown how far a download is. ErrMissingTool: there is no
// npm.
func EnsureEngine(ctx context.Context, dir string, progress io.Writer) (library string, err error) {
	if dir == "" {
		if dir, err = cacheDir("SLUICE_ENGINE_DIR", "engine"); err != nil {
			return "", err
		}
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", fmt.Errorf("engine directory: %w", err)
	}
	dir = filepath.Join(dir, fmt.Sprintf("%s-%s-%s", engineVersion, runtime.GOOS, runtime.GOARCH))
	err = install(ctx, installation{
		what:     "ClickHouse engine " + engineVersion,
		dir:      dir,
		complete: func(dir string) bool { return libraryIn(dir) != "" },
		fill: func(ctx context.Context, tmp string, lock *os.File) error {
			return npmInstall(ctx, tmp, lock, progress)
		},
		progress: progress,
	})
	if err != nil {
		return "", err
	}
	return libraryIn(dir), nil
}

// libraryIn finds the library that npm has put under dir for this machine; empty:
// none.
func libraryIn(dir string) string {
	platform := runtime.GOOS + "-" + strings.Replace(runtime.GOARCH, "amd64", "x64", 1)
	if runtime.GOOS == "linux" {
		platform += "-gnu"
	}
	for _, name := range []string{"libchdb.so", "libchdb.dylib"} {
		path := filepath.Join(dir, "node_modules", "@chdb", "lib-"+platform, name)
		if s, err := os.Stat(path); err == nil && s.Mode().IsRegular() {
			return path
		}
	}
	return ""
}

func npmInstall(ctx context.Context, tmp string, lock *os.File, progress io.Writer) error {
	npm, err := exec.LookPath("npm")
	if err != nil {
		return fmt.Errorf("%w the ClickHouse engine: install Node.js 18 or newer (it brings npm), or put a clickhouse binary of version %s or newer on PATH", ErrMissingTool, oldest)
	}
	if err := copyEmbedded(engineFiles, "engine", tmp); err != nil {
		return err
	}
	// What is known of the size on disk only scales the bar.
	total := map[string]int64{"linux/amd64": 569_000_000}[runtime.GOOS+"/"+runtime.GOARCH]
	stop := follow(progress, "installing the ClickHouse engine with npm", byteUnit, total, func() int64 { return treeSize(tmp) })
	defer stop()
	return run(ctx, command{
		name: "npm ci",
		path: npm,
		args: []string{"ci", "--include=optional", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"},
		dir:  tmp,
		log:  filepath.Join(tmp, "install.log"),
		lock: lock,
	})
}

// installation is something that is put into a directory once.
type installation struct {
	what     string
	dir      string // is complete or does not exist: it appears by a rename
	complete func(dir string) bool
	// fill puts everything into tmp. Children it starts are given lock, so that
	// nobody takes their place while one of them still writes.
	fill     func(ctx context.Context, tmp string, lock *os.File) error
	progress io.Writer
}

// install fills i.dir unless that was done before. The rename is the commit point:
// before it, whatever ends this process leaves a temporary folder that the next
// installation removes; after it, everything is on disk.
func install(ctx context.Context, i installation) error {
	if i.complete(i.dir) {
		return nil
	}
	parent := filepath.Dir(i.dir)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return fmt.Errorf("install %s: %w", i.what, err)
	}
	lock, err := lockFile(ctx, i.dir+".lock", func() {
		note(i.progress, "another process is installing %s: waiting for it", i.what)
	})
	if err != nil {
		return fmt.Errorf("install %s: %w", i.what, err)
	}
	defer lock.Close()
	if i.complete(i.dir) {
		return nil
	}
	if _, err := os.Stat(i.dir); err == nil {
		// Not ours to remove: it may be anything.
		return fmt.Errorf("install %s: %s is there but incomplete: remove it", i.what, i.dir)
	}
	left, err := filepath.Glob(i.dir + ".tmp-*")
	if err != nil {
		return fmt.Errorf("install %s: %w", i.what, err)
	}
	for _, dir := range left { // of one that died; who holds the lock owns them
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("install %s: %w", i.what, err)
		}
	}
	tmp, err := os.MkdirTemp(parent, filepath.Base(i.dir)+".tmp-")
	if err != nil {
		return fmt.Errorf("install %s: %w", i.what, err)
	}
	if err := fillAndMove(ctx, i, tmp, lock); err != nil {
		return fmt.Errorf("install %s: %w", i.what, errors.Join(err, os.RemoveAll(tmp)))
	}
	return nil
}

func fillAndMove(ctx context.Context, i installation, tmp string, lock *os.File) error {
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	if err := i.fill(ctx, tmp, lock); err != nil {
		return err
	}
	if !i.complete(tmp) {
		return fmt.Errorf("there is none for %s/%s in what was installed", runtime.GOOS, runtime.GOARCH)
	}
	if err := syncTree(tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, i.dir); err != nil {
		return err
	}
	return syncPath(filepath.Dir(i.dir))
}

// syncTree makes all files under dir, and their names, durable.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&^fs.ModeDir != 0 { // neither file nor folder: a link
			return err
		}
		return syncPath(path)
	})
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// treeSize is the bytes of the files under dir, as far as they can be seen.
func treeSize(dir string) int64 {
	var sum int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // it was moved away meanwhile
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
			sum += info.Size()
		}
		return nil
	})
	return sum
}

// copyEmbedded writes the files of a folder of f into dir.
func copyEmbedded(f embed.FS, folder, dir string) error {
	entries, err := f.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, e := range entries {
		b, err := f.ReadFile(folder + "/" + e.Name())
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, e.Name()), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// cacheDir is where something is installed for all of a user's processes: the
// setting's value, or a folder of the user's cache directory.
func cacheDir(setting, folder string) (string, error) {
	if dir := os.Getenv(setting); dir != "" {
		return dir, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no place to install: set %s to a directory (%w)", setting, err)
	}
	return filepath.Join(cache, "sluice", folder), nil
}
