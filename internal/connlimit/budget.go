package connlimit

const (
	// usualFiles is the limit that is assumed where the system sets or reveals none.
	usualFiles = 4096
	// maxConnections bounds the connections where files are plentiful, since each takes memory,
	// too.
	maxConnections = 512
	minConnections = 2 * spare
	// ownFiles counts the files that the program opens besides connections: the outbox and a copy
	// of it, the log, the poller, certificates, name look-ups.
	ownFiles = 32
)

// Budget returns how many connections the server may hold, so that the process can open as many
// others, outgoing ones included, at any time. Enough is false if the limit on open files may be
// too low for that.
func Budget(others int) (connections int, enough bool) { return budget(maxFiles(), others) }

// budget leaves at least half of the files to the others, since questions where to route a call
// come in bursts.
func budget(files, others int) (connections int, enough bool) {
	left := min(files-ownFiles-others, files/2)
	return max(minConnections, min(left, maxConnections)), left >= minConnections
}
