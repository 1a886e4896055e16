package bolt

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	bolt "go.etcd.io/bbolt"
)

// A page of bbolt's begins with its number (8 bytes), its kind (2), how many elements it has (2),
// and how many pages more it takes (4), in the byte order of the machine. An element of a branch
// page (16 bytes) ends with the number of the page that it leads to.
const (
	pageHead      = 16
	branchElement = 16
	branchKind    = 0x01
	leafKind      = 0x02
	firstDataPage = 2 // before it are the two meta pages
)

// checkBranches reads the branch pages of all trees in a file once. bbolt follows them by recursion
// and without a bound, so one that leads back to itself would end the process by a stack that
// overflows, or fill the memory, at the first request that comes upon it. Leaves are not read: they
// are nearly all of the file, and what is wrong in one is met with an error when it is needed. It
// fails with ErrNotOutbox.
func checkBranches(tx *bolt.Tx, file io.ReaderAt, pageSize int) error {
	w := pageWalk{file: file, size: pageSize, pages: uint64(tx.Size()) / uint64(pageSize), seen: map[uint64]bool{}}
	if err := w.tree(uint64(tx.Cursor().Bucket().Root())); err != nil {
		return err
	}
	if err := tx.ForEach(func(_ []byte, b *bolt.Bucket) error { return w.tree(uint64(b.Root())) }); err != nil {
		return err
	}
	endpoints := tx.Bucket(bucketEndpoints)
	if endpoints == nil {
		return nil
	}
	return endpoints.ForEachBucket(func(name []byte) error {
		b := endpoints.Bucket(name)
		if err := w.tree(uint64(b.Root())); err != nil {
			return err
		}
		return b.ForEachBucket(func(name []byte) error { return w.tree(uint64(b.Bucket(name).Root())) })
	})
}

// pageWalk goes through the branch pages of a file.
type pageWalk struct {
	file  io.ReaderAt
	size  int             // of a page, in bytes
	pages uint64          // that are in use
	seen  map[uint64]bool // branch pages
}

// tree walks one tree from its root; 0 is that of a bucket that is kept within a leaf. All leaves
// of a tree are equally deep, so those after the first need not be looked at to be known for such.
func (w *pageWalk) tree(root uint64) error {
	if root == 0 {
		return nil
	}
	type position struct {
		page  uint64
		depth int
	}
	leaves := -1 // how deep they are
	for left := []position{{root, 0}}; len(left) > 0; {
		at := left[len(left)-1]
		left = left[:len(left)-1]
		if at.page < firstDataPage || at.page >= w.pages {
			return damage{ErrNotOutbox, fmt.Sprintf("page %d of it is referred to, and there is none", at.page)}
		}
		if at.depth == leaves {
			continue
		}
		children, err := w.children(at.page)
		if err != nil {
			return err
		}
		if children == nil {
			leaves = at.depth
		}
		for _, child := range slices.Backward(children) {
			left = append(left, position{child, at.depth + 1})
		}
	}
	return nil
}

// children gives the pages to which a branch page leads; nil if it is a leaf.
func (w *pageWalk) children(page uint64) ([]uint64, error) {
	damaged := damage{ErrNotOutbox, fmt.Sprintf("page %d of it is damaged", page)}
	head := make([]byte, pageHead)
	if _, err := w.file.ReadAt(head, int64(page)*int64(w.size)); err != nil {
		return nil, damaged
	}
	kind, count := binary.NativeEndian.Uint16(head[8:]), int(binary.NativeEndian.Uint16(head[10:]))
	isSound := binary.NativeEndian.Uint64(head) == page && uint64(binary.NativeEndian.Uint32(head[12:])) < w.pages-page
	switch {
	case isSound && kind == leafKind:
		return nil, nil
	case !isSound || kind != branchKind || count == 0 || w.seen[page]:
		return nil, damaged
	}
	w.seen[page] = true
	elements := make([]byte, count*branchElement)
	if _, err := w.file.ReadAt(elements, int64(page)*int64(w.size)+pageHead); err != nil {
		return nil, damaged
	}
	children := make([]uint64, count)
	for i := range children {
		children[i] = binary.NativeEndian.Uint64(elements[(i+1)*branchElement-8:])
	}
	return children, nil
}
