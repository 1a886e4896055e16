package recordings

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// folder is where the recordings are kept, one file each. Its name holds all that is to be known:
//
//	ab/<ID of the event>-<who>.mp3
//
// Who are keyed hashes of the call's numbers, by which the recordings of a person are found. ab are
// the first two digits of the ID, so that no folder has too many files.
type folder struct {
	dir   string
	limit int64 // bytes of all files

	mu   sync.Mutex
	used int64 // bytes of all files, but for what other bridges have added since the last look
}

// kept is a file in the folder.
type kept struct {
	id, who, path string
	kind          kind
	size          int64
	at            time.Time // when it was stored
}

// keptName is the name of a file.
var keptName = regexp.MustCompile(`^([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})` +
	`-([0-9a-f]{16}(?:_[0-9a-f]{16}){0,2}|0)\.([a-z0-9]{1,8})$`)

// isID is the form of the ID of an event.
var isID = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// partPrefix begins the name of a file that is being fetched.
const partPrefix = ".part-"

// partAge is after how long such a file is of a process that has ended.
const partAge = time.Hour

// part creates a file for what is being fetched.
func (f *folder) part() (*os.File, error) {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return nil, err
	}
	return os.CreateTemp(f.dir, partPrefix)
}

// keep gives a file its name, once its bytes are on the disk. It removes the oldest files if there
// is no room.
func (f *folder) keep(part *os.File, id, who string, k kind) (kept, error) {
	info, err := part.Stat()
	if err != nil {
		return kept{}, err
	}
	if err := part.Sync(); err != nil {
		return kept{}, err
	}
	if err := f.makeRoom(info.Size()); err != nil {
		return kept{}, err
	}
	shard := filepath.Join(f.dir, id[:2])
	if err := os.Mkdir(shard, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return kept{}, err
	}
	name := filepath.Join(shard, fmt.Sprintf("%s-%s.%s", id, who, k.extension))
	if err := os.Rename(part.Name(), name); err != nil {
		f.count(-info.Size())
		return kept{}, err
	}
	for _, dir := range []string{shard, f.dir} { // the first file of a shard makes that durable too
		if err := syncDir(dir); err != nil {
			return kept{}, err
		}
	}
	return kept{id, who, name, k, info.Size(), time.Now()}, nil
}

// syncDir makes the names in a folder durable.
func syncDir(name string) error {
	dir, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	if err := dir.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, fs.ErrPermission) {
		return err // Windows cannot, and says that it is not permitted
	}
	return nil
}

// find returns a file by its ID. Fails with errGone.
func (f *folder) find(id string) (kept, error) {
	if !isID.MatchString(id) {
		return kept{}, errGone
	}
	entries, err := os.ReadDir(filepath.Join(f.dir, id[:2]))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return kept{}, err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), id) {
			if k, ok := f.read(id[:2], e); ok {
				return k, nil
			}
		}
	}
	return kept{}, errGone
}

// read returns what an entry of a shard is; false if it is none of ours.
func (f *folder) read(shard string, e fs.DirEntry) (kept, bool) {
	m := keptName.FindStringSubmatch(e.Name())
	if m == nil || !strings.HasPrefix(m[1], shard) {
		return kept{}, false
	}
	info, err := e.Info()
	if err != nil || !info.Mode().IsRegular() {
		return kept{}, false
	}
	return kept{
		id:   m[1],
		who:  m[2],
		path: filepath.Join(f.dir, shard, e.Name()),
		kind: kind{m[3], mediaTypeOf(m[3])},
		size: info.Size(),
		at:   info.ModTime(),
	}, true
}

// all returns all files, the oldest first.
func (f *folder) all(ctx context.Context) (list []kept, err error) {
	shards, err := os.ReadDir(f.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, shard := range shards {
		if !shard.IsDir() || len(shard.Name()) != 2 {
			continue
		}
		entries, err := os.ReadDir(filepath.Join(f.dir, shard.Name()))
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if k, ok := f.read(shard.Name(), e); ok {
				list = append(list, k)
			}
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	slices.SortFunc(list, func(a, b kept) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.id, b.id)) })
	return list, nil
}

// makeRoom makes room for a file of a size, and counts it.
func (f *folder) makeRoom(size int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.used += size; f.used <= f.limit {
		return nil
	}
	list, err := f.all(context.Background())
	if err != nil {
		return err
	}
	// With some slack, so that not every file needs a look at all the others.
	left, err := removeOldest(list, f.limit-f.limit/slack-size)
	f.used = left + size
	return err
}

// slack is the part of the limit that is made free at once.
const slack = 50

// count adds to the bytes of all files.
func (f *folder) count(size int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.used += size
}

// removeOldest removes files, the oldest first, until the rest has at most a size, and returns that
// of the rest.
func removeOldest(list []kept, size int64) (left int64, err error) {
	left = sizeOf(list)
	for _, k := range list {
		if left <= size {
			break
		}
		if err := remove(k); err != nil {
			return left, err
		}
		left -= k.size
	}
	return left, nil
}

func sizeOf(list []kept) (sum int64) {
	for _, k := range list {
		sum += k.size
	}
	return sum
}

// remove removes a file, which another bridge may have done.
func remove(k kept) error {
	if err := os.Remove(k.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// prune removes the files that are too old, by when they were stored, and those of fetches that
// were cut off.
func (f *folder) prune(ctx context.Context, isOld func(at time.Time) bool) (n int, err error) {
	list, err := f.all(ctx)
	if err != nil {
		return 0, err
	}
	for _, k := range list {
		if !isOld(k.at) {
			break
		}
		if err := remove(k); err != nil {
			return n, err
		}
		n++
	}
	f.mu.Lock()
	f.used = sizeOf(list[n:])
	f.mu.Unlock()
	return n, f.removeParts(time.Now().Add(-partAge))
}

// removeParts removes what was begun before a time and is no file yet.
func (f *folder) removeParts(before time.Time) error {
	parts, err := filepath.Glob(filepath.Join(f.dir, partPrefix+"*"))
	if err != nil {
		return err
	}
	for _, name := range parts {
		if info, err := os.Stat(name); err == nil && info.ModTime().Before(before) {
			if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// forget removes the files of a person, or only counts them.
func (f *folder) forget(ctx context.Context, who string, dryRun bool) (n int, err error) {
	list, err := f.all(ctx)
	if err != nil {
		return 0, err
	}
	for _, k := range list {
		if who == nobody || !slices.Contains(strings.Split(k.who, "_"), who) {
			continue
		}
		if !dryRun {
			if err := remove(k); err != nil {
				return n, err
			}
		}
		n++
	}
	return n, nil
}
