package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// maxCommentWidth is how many columns a line with nothing but a comment may have. A tab counts as
// four. Lines of code are longer, and golangci-lint's lll holds them.
const maxCommentWidth = 100

// wideComments gives the numbers of the lines of a Go file that hold nothing but a comment, and are
// too wide.
func wideComments(name string, source []byte) (lines []int, err error) {
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, name, source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	text := strings.Split(string(source), "\n")
	check := func(c *ast.Comment) {
		// Not PositionFor's default, which follows //line directives.
		first, last := files.PositionFor(c.Pos(), false), files.PositionFor(c.End(), false)
		if strings.TrimSpace(text[first.Line-1][:first.Column-1]) != "" {
			return // it stands behind code
		}
		for n := first.Line; n <= last.Line; n++ {
			line := strings.ReplaceAll(text[n-1], "\t", "    ")
			if utf8.RuneCountInString(line) > maxCommentWidth {
				lines = append(lines, n)
			}
		}
	}
	for _, group := range file.Comments {
		for _, c := range group.List {
			check(c)
		}
	}
	return lines, nil
}

func TestCommentsAreWrapped(t *testing.T) {
	found := 0
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".go" {
			return err
		}
		found++
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		lines, err := wideComments(path, source)
		if len(lines) > 0 {
			t.Errorf("%s: comments are wider than %d columns on the lines %d", path, maxCommentWidth, lines)
		}
		return err
	})
	if err != nil || found < 100 {
		t.Errorf("%d Go files were found, %v", found, err)
	}
}

// The width is that of characters, with tabs as four columns, on lines of their own, in both kinds
// of comments, and not of what looks like one in a string.
func TestWideCommentsAreFound(t *testing.T) {
	at := func(width int) string { return strings.Repeat("ш", width) }
	for name, c := range map[string]struct {
		source string
		want   []int
	}{
		"at the limit":          {"package p\n// " + at(97) + "\n", nil},
		"over it":               {"package p\n// " + at(98) + "\n", []int{2}},
		"behind a tab":          {"package p\nfunc f() {\n\t// " + at(93) + "\n}\n", nil},
		"over it behind a tab":  {"package p\nfunc f() {\n\t// " + at(94) + "\n}\n", []int{3}},
		"a block":               {"package p\n/*\n" + at(100) + "\n" + at(101) + "\n*/\n", []int{4}},
		"behind code":           {"package p\nvar a = 1 // " + at(100) + "\n", nil},
		"in a string":           {"package p\nvar a = `\n// " + at(100) + "`\n", nil},
		"a directive":           {"//go:build " + at(100) + "\n\npackage p\n", []int{1}},
		"behind a line comment": {"package p\n//line other.go:1\n// " + at(98) + "\n", []int{3}},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := wideComments("p.go", []byte(c.source)); err != nil || !slices.Equal(got, c.want) {
				t.Errorf("found on the lines %d, want %d (%v)", got, c.want, err)
			}
		})
	}
}
