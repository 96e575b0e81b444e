// Package embedded runs the servers that Sluice talks to on one machine, without
// containers: a Kafka broker inside the process (Broker), a real ClickHouse in a
// child process (ClickHouse) and, for tests and fault runs, a real Apache Kafka
// (ApacheKafka). Everything listens on loopback only.
//
// Children do not outlive their parent, however it ends: on Linux the kernel kills
// them with it, elsewhere a watching shell does. What is on disk survives kill -9
// of any of them, and each takes its data directory's lock for as long as it runs.
//
// What has to be installed comes from npm (ClickHouse, as the library libchdb) and
// Maven Central (Kafka), once for all processes of a user, checked against the
// hashes in this package.
package embedded
