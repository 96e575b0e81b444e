package doctor

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"
)

// unreachable is for a request without an answer.
func unreachable(u *url.URL, err error) Problem {
	what := fmt.Sprintf("no answer from %s: %v", u.Host, err)
	var dns *net.DNSError
	var ca x509.UnknownAuthorityError
	var host x509.HostnameError
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return Problem{what, "nobody listens there. Is a collector running (sluice up, or bin/collector), and is it this address that its SLUICE_LISTEN has? --url names another"}
	case errors.As(err, &dns):
		return Problem{what, "check the host in --url"}
	case errors.As(err, &ca), errors.As(err, &host):
		return Problem{what, "the certificate is not one this machine trusts for that name; an SDK would refuse it too"}
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return Problem{what, "use http:// in --url: no TLS is spoken there"}
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return Problem{what, "something holds the request: a firewall on the way, or the wrong address. The collector's /healthz is asked with GET " + u.Scheme + "://" + u.Host + "/healthz"}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return Problem{what, "the connection was closed without an answer: see the log of the collector, or of what is in front of it. If that address speaks TLS, use https:// in --url"}
	}
	return Problem{what, "check --url, and that a collector can be reached from here"}
}

// refused is for an answer that is no success.
func refused(sdk SDK, u *url.URL, a *Answer, p Probe) Problem {
	code, detail := a.refusal()
	what := fmt.Sprintf("the answer is %d", a.Status)
	for _, s := range []string{code, detail} {
		if s != "" {
			what += ", " + s
		}
	}
	hash := fmt.Sprintf("%x", sha256.Sum256([]byte(p.key())))
	switch {
	case a.Status/100 == 3:
		return Problem{fmt.Sprintf("the answer is a redirect, %d to %q: SDKs lose events at it", a.Status, a.Header.Get("Location")),
			"a collector never redirects: something in front of it does. Set the SDK, and --url, to the address that it redirects to"}
	case a.Status == 401 && p.Key == "":
		return Problem{what + ": no key was given", "give the key that the SDK is set up with: --key. Keys are made with sluice keys add (docs/keys.md)"}
	case a.Status == 401 && code == "no_key":
		return Problem{what + ": the key was sent in " + sdk.KeyIn, "something in front of the collector takes it away; have it pass " + sdk.KeyIn}
	case a.Status == 401:
		do := "is the key right? If it is one of the SDK's vendor, or thought up elsewhere, put its hash into the collector's keys file, with the project its events go to: \"sha256\": \"" + hash +
			"\". Or make a key with sluice keys add --project=NAME and give it to the SDK. Collectors know it within seconds (docs/keys.md)"
		if v := sdk.judge(a); v.Does == Stops {
			do += ". Then restart what has this SDK in it: the answer has stopped it"
		}
		return Problem{what + ": the collector does not know the key that came in " + sdk.KeyIn, do}
	case a.Status == 403 && code == "key_disabled":
		return Problem{what, "the key is disabled: sluice keys list shows which, sluice keys enable ID lets it in again"}
	case a.Status == 403:
		return Problem{what, "the key's entry in the keys file has scopes, and exposures is not among them: add it (docs/keys.md)"}
	case a.Status == 404 && code == "":
		return Problem{what + " for " + u.Path, "whatever answers there is no collector, or it is one of a version without this SDK's path. --url is the collector's address without the SDK's own path"}
	case a.Status == 404:
		return Problem{what + " for " + u.Path, "--url is the collector's address without the SDK's own path; something in front may have changed the path, and a trailing slash counts. An older collector may not have this SDK's path"}
	case a.Status == 429, code == "rate_limited":
		return Problem{what, "the key is over its rate: raise rate or burst of its entry in the keys file, or wait"}
	case code == "overloaded":
		return Problem{what, "the collector has too much in hand: run more of them, or raise SLUICE_MAX_IN_FLIGHT_BYTES"}
	case code == "not_durable":
		return Problem{what, "neither Kafka nor the spool took the batch: see the collector's log and /status on its admin address, and what SLUICE_KAFKA_BROKERS and SLUICE_SPOOL_DIR name"}
	case a.Status >= 500 && code == "":
		return Problem{what, "what is in front of the collector answers, and cannot reach it or got nothing from it: see its log"}
	case a.Status >= 500:
		return Problem{what, "see the collector's log"}
	case code == "":
		return Problem{what, "the answer is not a collector's: see what is in front of it"}
	}
	return Problem{what, "docs/errors.md has what " + code + " means; this request is one that a collector takes, so something on the way may have changed it"}
}

// silent is for a ClickHouse that does not answer.
func silent(err error) Problem {
	what := fmt.Sprintf("ClickHouse could not be asked whether the exposure arrived: %v", err)
	switch msg := err.Error(); {
	case errors.Is(err, ErrNoTables):
		return Problem{what, "is it the database in --clickhouse-dsn that the sinks have? sluice migrate makes it and its tables"}
	case strings.Contains(msg, "code: 516"): // AUTHENTICATION_FAILED
		return Problem{what, "the user or the password in --clickhouse-dsn is wrong"}
	}
	return Problem{what, "is it running, and is it the native address, host:port, in --clickhouse-dsn (SLUICE_CLICKHOUSE_DSN)?"}
}

// buried is for a dead letter.
func buried(sdk SDK, d Dead) Problem {
	what := fmt.Sprintf("it is a dead letter (stage %s): %s", d.Stage, d.Reason)
	if d.Field != "" {
		what += " " + d.Field
	}
	if d.Error != "" {
		what += ": " + d.Error
	}
	switch d.Stage {
	case "sink":
		return Problem{what, "ClickHouse did not take the row: see what was added to the table exposures (a CHECK, a column of another type)"}
	case "conflict":
		return Problem{what, "a batch with the same idempotency key and other events was stored before: something on the way changed the request"}
	}
	return Problem{what, "docs/errors.md has what the reason means, " + sdk.Page + " what this SDK has to send"}
}

// missing says what holds the exposure back.
func (r *Report) missing(ctx context.Context, o Options, sent time.Time) {
	what := fmt.Sprintf("it was accepted, and is neither in exposures nor in dead_letters after %v", o.Wait)
	ctx, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	h, err := o.Store.Holdup(ctx)
	if err != nil {
		r.problem(Problem{what, fmt.Sprintf("see whether a sink runs and what its log says; delivery_watermark could not be asked: %v", err)})
		return
	}
	r.Arrival.Holdup = &h
	switch {
	case r.Answer.Durable == "spool":
		r.problem(Problem{what + ": it is in the collector's spool", "Kafka was away when it was accepted, and it is delivered once Kafka is back: see the collector's log"})
	case h.JudgedAt.IsZero():
		r.problem(Problem{what + ": no sink has ever stored anything in this database", "start a sink (bin/sink), or name the database that its SLUICE_CLICKHOUSE_DSN has with --clickhouse-dsn"})
	case time.Since(h.JudgedAt) > time.Minute:
		r.problem(Problem{fmt.Sprintf("%s: no sink has looked after this database since %s", what, h.JudgedAt.UTC().Format(time.RFC3339)), "start the sinks; it is stored once they run"})
	case h.CompleteUntil.After(sent.Add(5 * time.Second)):
		r.problem(Problem{what + ", although all that this database's collectors accepted until " + h.CompleteUntil.UTC().Format(time.RFC3339) + " is",
			"the collector's batches go elsewhere: compare SLUICE_KAFKA_BROKERS and SLUICE_TOPIC_PREFIX of the collector and the sinks, and the sinks' SLUICE_CLICKHOUSE_DSN with --clickhouse-dsn. If the clocks of this machine and the collector differ, set them"})
	default:
		r.problem(Problem{what + ". What the pipeline waits for: " + h.Why, "docs/watermark.md has what that means and what to do; or wait longer: --wait"})
	}
}
