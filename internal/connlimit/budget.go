package connlimit

const (
	usualFiles = 4096
	// maxConnections bounds the connections where files are plenty: each takes memory too.
	maxConnections = 512
	minConnections = 2 * spare
	// ownFiles are those that the program has open beside connections: the outbox and a copy of it, the log, the poller, certificates, names being looked up.
	ownFiles = 32
)

// Budget is how many connections the server may have, so that so many others can be made at any time. Enough is false where that is not sure.
func Budget(others int) (connections int, enough bool) { return budget(maxFiles(), others) }

// budget leaves at least half of the files to the others: questions where a call should go come in bursts.
func budget(files, others int) (connections int, enough bool) {
	left := min(files-ownFiles-others, files/2)
	return max(minConnections, min(left, maxConnections)), left >= minConnections
}
