package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// setting matches the name of an environment variable, also one with a number in it.
var setting = regexp.MustCompile(`\b[A-Z]{2,}(_(<n>|[A-Z]+))+\b`)

// errorTexts gives the literals in the texts of a file's errors: those in errors.New, in fmt.Errorf
// and in a composite literal's field Text.
func errorTexts(file *ast.File) (texts []string) {
	collect := func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			if text, err := strconv.Unquote(lit.Value); err == nil {
				texts = append(texts, text)
			}
		}
		return true
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			if f, ok := n.Fun.(*ast.SelectorExpr); ok {
				from, _ := f.X.(*ast.Ident)
				name := f.Sel.Name
				if from != nil && (from.Name+"."+name == "errors.New" || from.Name+"."+name == "fmt.Errorf") ||
					name == "With" {
					for _, arg := range n.Args {
						ast.Inspect(arg, collect)
					}
				}
			}
		case *ast.KeyValueExpr:
			if key, ok := n.Key.(*ast.Ident); ok && key.Name == "Text" {
				ast.Inspect(n.Value, collect)
			}
		}
		return true
	})
	return texts
}

// isFace reports whether a file is of a room that people read, and so names settings.
func isFace(path string) bool {
	for _, room := range []string{
		"main.go", "internal/config/", "internal/cli/", "internal/advice/", "internal/dashboard/", "transferapi/",
	} {
		if strings.HasPrefix(path, room) {
			return true
		}
	}
	return false
}

// sources calls f for each Go file of the program itself.
func sources(t *testing.T, f func(path string, source []byte, file *ast.File)) {
	t.Helper()
	found := 0
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, source, parser.SkipObjectResolution)
		if err == nil {
			found++
			f(filepath.ToSlash(path), source, file)
		}
		return err
	})
	if err != nil || found < 100 {
		t.Fatalf("%d Go files were found, %v", found, err)
	}
}

// An error says what is wrong. What to do about it, and by which setting, is said by a face: see
// the package advice.
func TestErrorsNameNoSetting(t *testing.T) {
	found := 0
	sources(t, func(path string, _ []byte, file *ast.File) {
		if isFace(path) {
			return
		}
		for _, text := range errorTexts(file) {
			found++
			if name := setting.FindString(text); name != "" {
				t.Errorf("%s: the error %q names %s", path, text, name)
			}
		}
	})
	if found < 50 {
		t.Errorf("only %d texts were found", found)
	}
}

// A code that no error has, or whose text stands elsewhere than where it is declared, is a mistake.
func TestEachCodeIsUsed(t *testing.T) {
	const declaredIn = "internal/telephony/fault.go"
	codes := map[string]string{} // name by code
	var others strings.Builder
	sources(t, func(path string, source []byte, file *ast.File) {
		switch {
		case path == declaredIn:
			ast.Inspect(file, func(n ast.Node) bool {
				if spec, ok := n.(*ast.ValueSpec); ok && strings.HasPrefix(spec.Names[0].Name, "Code") {
					codes[spec.Values[0].(*ast.BasicLit).Value] = spec.Names[0].Name
				}
				return true
			})
			for _, part := range strings.SplitAfter(string(source), "\n)\n")[1:] { // after the imports
				if !strings.Contains(part, "// The codes.") {
					others.WriteString(part)
				}
			}
		case !strings.HasPrefix(path, "internal/advice/"):
			others.Write(source)
		}
	})
	used := map[string]bool{}
	for _, name := range regexp.MustCompile(`\bCode\w+`).FindAllString(others.String(), -1) {
		used[name] = true
	}
	for code, name := range codes {
		if !used[name] && !strings.Contains(others.String(), code) {
			t.Errorf("no error has the code %s", name)
		}
	}
	if len(codes) < 50 {
		t.Errorf("only %d codes were found", len(codes))
	}
}
