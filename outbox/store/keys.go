package store

import "time"

// KeyLife is how long an idempotency key is stored, unless the room of its bearer is exhausted
// earlier.
const KeyLife = 24 * time.Hour

// KeyRoom returns how many bytes the keys of one bearer may take where events may take maxBytes: 1
// to 16 MiB. With 1 GB of events, the keys of a day of calls fit.
func KeyRoom(maxBytes int64) int64 { return min(max(maxBytes/64, 1<<20), 16<<20) }
