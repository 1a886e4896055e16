package bolt

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	bolt "go.etcd.io/bbolt"
)

// A bbolt page begins with its number (8 bytes), its kind (2), the number of its elements (2) and
// the number of the overflow pages that follow it (4), in the byte order of the machine. An element
// of a branch page (16 bytes) ends with the number of the child page.
const (
	pageHead      = 16
	branchElement = 16
	branchKind    = 0x01
	leafKind      = 0x02
	firstDataPage = 2 // the two before it are the meta pages
)

// checkBranches reads the branch pages of all trees in a file once. bbolt descends them by
// recursion without a bound, so a page that refers to itself or to an ancestor would end the
// process by a stack overflow, or exhaust the memory, at the first request that reaches it. Leaves
// are not read: they are nearly all of the file, and damage in one causes an error when it is read.
// Fails with ErrNotOutbox.
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

// pageWalk visits the branch pages of a file.
type pageWalk struct {
	file  io.ReaderAt
	size  int             // the bytes of a page
	pages uint64          // the number of pages in use
	seen  map[uint64]bool // the branch pages visited
}

// tree visits the branch pages of one tree from its root; root 0 belongs to a bucket that is stored
// within a leaf. All leaves of a tree have the same depth, so once the first one is found, pages at
// that depth are known to be leaves without being read.
func (w *pageWalk) tree(root uint64) error {
	if root == 0 {
		return nil
	}
	type position struct {
		page  uint64
		depth int
	}
	leaves := -1 // their depth, once it is known
	for stack := []position{{root, 0}}; len(stack) > 0; {
		at := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if at.page < firstDataPage || at.page >= w.pages {
			return damage{ErrNotOutbox, fmt.Sprintf("it refers to page %d, which does not exist", at.page)}
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
			stack = append(stack, position{child, at.depth + 1})
		}
	}
	return nil
}

// children returns the pages to which a branch page refers, or nil if it is a leaf.
func (w *pageWalk) children(page uint64) ([]uint64, error) {
	damaged := damage{ErrNotOutbox, fmt.Sprintf("page %d is damaged", page)}
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
