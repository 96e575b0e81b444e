package embedded

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// kafkaVersion is the version in kafka/pom.xml.
const kafkaVersion = "4.1.1"

// Kafka 4's brokers need Java 17 (Kafka documentation, "Java Version").
const oldestJava = 17

//go:embed kafka/pom.xml kafka/jars.sha256
var kafkaFiles embed.FS

// EnsureKafka makes sure that Apache Kafka's jars are installed and returns their
// folder. Maven brings them from Maven Central into a folder named after the
// version under dir; dir is SLUICE_KAFKA_DIR, or the user's cache directory, if it
// is empty. Each jar must have the SHA-256 in this package's list. Several
// processes may call it at once; see EnsureEngine. ErrMissingTool: there is no Maven
// or no Java of version 17 or newer.
func EnsureKafka(ctx context.Context, dir string, progress io.Writer) (jars string, err error) {
	if _, err := findJava(ctx); err != nil {
		return "", err
	}
	if dir == "" {
		if dir, err = cacheDir("SLUICE_KAFKA_DIR", ""); err != nil {
			return "", err
		}
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", fmt.Errorf("kafka directory: %w", err)
	}
	dir = filepath.Join(dir, "kafka-"+kafkaVersion)
	err = install(ctx, installation{
		what: "Apache Kafka " + kafkaVersion,
		dir:  dir,
		complete: func(dir string) bool {
			s, err := os.Stat(filepath.Join(dir, "lib"))
			return err == nil && s.IsDir()
		},
		fill: func(ctx context.Context, tmp string, lock *os.File) error {
			return mavenInstall(ctx, tmp, lock, progress)
		},
		progress: progress,
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "lib"), nil
}

func mavenInstall(ctx context.Context, tmp string, lock *os.File, progress io.Writer) error {
	mvn, err := exec.LookPath("mvn")
	if err != nil {
		return fmt.Errorf("%w Apache Kafka: install Maven 3.6.3 or newer (the command mvn)", ErrMissingTool)
	}
	if err := copyEmbedded(kafkaFiles, "kafka", tmp); err != nil {
		return err
	}
	log := filepath.Join(tmp, "install.log")
	stop := follow(progress, "installing Apache Kafka with Maven", fileUnit, 0, func() int64 { return downloads(log) })
	err = run(ctx, command{
		name: "mvn dependency:copy-dependencies",
		path: mvn,
		args: []string{"--batch-mode", "dependency:copy-dependencies", "-DoutputDirectory=" + filepath.Join(tmp, "lib")},
		dir:  tmp,
		log:  log,
		lock: lock,
	})
	stop()
	if err != nil {
		return err
	}
	list, err := kafkaFiles.ReadFile("kafka/jars.sha256")
	if err != nil {
		return err
	}
	return checkHashes(filepath.Join(tmp, "lib"), list)
}

// downloads counts the files that Maven's log says it has fetched.
func downloads(log string) int64 {
	b, err := os.ReadFile(log)
	if err != nil {
		return 0
	}
	return int64(bytes.Count(b, []byte("Downloaded from ")))
}

// checkHashes reports whether dir holds the files of a list in the form of
// sha256sum, with their contents, and no others.
func checkHashes(dir string, list []byte) error {
	want := map[string]string{}
	for lines := bufio.NewScanner(bytes.NewReader(list)); lines.Scan(); {
		sum, name, ok := strings.Cut(lines.Text(), "  ")
		if !ok {
			return fmt.Errorf("list of hashes: line %q", lines.Text())
		}
		want[name] = sum
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		sum, err := hashFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		switch want[e.Name()] {
		case sum:
			delete(want, e.Name())
		case "":
			return fmt.Errorf("%s is not in the list of expected files", e.Name())
		default:
			return fmt.Errorf("%s has SHA-256 %s, expected %s: it was changed on the way or in Maven's local repository", e.Name(), sum, want[e.Name()])
		}
	}
	for name := range want {
		return fmt.Errorf("%s is missing", name)
	}
	return nil
}

func hashFile(path string) (sum string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

var javaVersion = regexp.MustCompile(`version "(\d+)`)

// findJava is the path of a java of version 17 or newer: the one of JAVA_HOME if
// that is set, else the one on PATH.
func findJava(ctx context.Context) (string, error) {
	missing := func(why string) error {
		return fmt.Errorf("%w Apache Kafka: install a JDK of version %d or newer (%s)", ErrMissingTool, oldestJava, why)
	}
	name := "java"
	if home := os.Getenv("JAVA_HOME"); home != "" {
		name = filepath.Join(home, "bin", "java")
	}
	java, err := exec.LookPath(name)
	if err != nil {
		return "", missing("there is no " + name)
	}
	out, err := exec.CommandContext(ctx, java, "-version").CombinedOutput()
	if err != nil {
		return "", missing(java + " does not run")
	}
	m := javaVersion.FindSubmatch(out)
	if m == nil {
		return "", missing(java + " names no version")
	}
	// "1.8.0" is how versions before 9 call themselves: 1 is too old as well.
	if v, err := strconv.Atoi(string(m[1])); err != nil || v < oldestJava {
		return "", missing(fmt.Sprintf("%s is version %s", java, m[1]))
	}
	return java, nil
}
