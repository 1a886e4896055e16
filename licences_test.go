package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// targets are what releases are built for: .goreleaser.yaml has the same.
var targets = []string{
	"linux/amd64", "linux/arm64", "linux/arm", "windows/amd64", "darwin/amd64", "darwin/arm64",
}

// licensed is a module that is linked into the program.
type licensed struct {
	path, version string
	texts         map[string]string // licences and notices by their names within the module
}

// linkedModules lists the modules of which any target's program has a package, and Go itself.
func linkedModules(t *testing.T) []licensed {
	t.Helper()
	modules := map[string]licensed{}
	for _, target := range targets {
		system, processor, _ := strings.Cut(target, "/")
		const format = "{{if .Module}}{{if not .Module.Main}}" +
			"{{.Module.Path}}\t{{.Module.Version}}\t{{.Module.Dir}}\t{{.Dir}}{{end}}{{end}}"
		cmd := exec.Command("go", "list", "-deps", "-f", format, ".")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+system, "GOARCH="+processor)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			fields := strings.Split(strings.TrimSpace(line), "\t")
			if len(fields) != 4 {
				continue
			}
			m, known := modules[fields[0]]
			if !known {
				m = licensed{fields[0], fields[1], map[string]string{}}
				modules[fields[0]] = m
			}
			// A folder within a module may have a licence of its own.
			for root, folder := fields[2], fields[3]; ; folder = filepath.Dir(folder) {
				maps.Copy(m.texts, licencesIn(t, root, folder))
				if len(folder) <= len(root) {
					break
				}
			}
		}
	}
	list := slices.SortedFunc(maps.Values(modules), func(a, b licensed) int { return strings.Compare(a.path, b.path) })
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	folder := strings.TrimSpace(string(root))
	return append(list, licensed{"Go and its standard library", "", licencesIn(t, folder, folder)})
}

var licenceFile = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice)(\.(txt|md))?$`)

// licencesIn gives the licences in one folder of a module.
func licencesIn(t *testing.T, root, folder string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	list := map[string]string{}
	for _, e := range entries {
		if e.IsDir() || !licenceFile.MatchString(e.Name()) {
			continue
		}
		path := filepath.Join(folder, e.Name())
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			t.Fatal(err)
		}
		text = bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n"))
		list[filepath.ToSlash(name)] = strings.Trim(string(text), "\n")
	}
	return list
}

// kinds are the licences that a program may be linked with and passed on, by a phrase of each.
var kinds = []struct{ name, phrase string }{
	{"MPL-2.0", "Mozilla Public License"},
	{"Apache-2.0", "Apache License"},
	{"MIT", "Permission is hereby granted, free of charge"},
	{"ISC", "Permission to use, copy, modify, and/or distribute this software"},
	{"BSD", "Redistribution and use in source and binary forms"},
	{"zlib", "This software is provided 'as-is', without any express or implied"},
}

// kind gives the name of a module's licence; "" if it is none of kinds.
func (m licensed) kind() string {
	for _, name := range slices.Sorted(maps.Keys(m.texts)) {
		text := strings.Join(strings.Fields(m.texts[name]), " ")
		for _, k := range kinds {
			if strings.Contains(text, k.phrase) {
				return k.name
			}
		}
	}
	return ""
}

// thirdPartyLicences gives the file that goes with the program.
func thirdPartyLicences(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("pzbridge is linked with the following modules. Their licences are below.\n\n")
	users := map[string][]string{} // by text
	var texts []string
	for _, m := range linkedModules(t) {
		kind := m.kind()
		if kind == "" {
			t.Errorf("%s has no licence that is known: may it be linked?", m.path)
		}
		fmt.Fprintf(&b, "- %s (%s)\n", strings.TrimSpace(m.path+" "+m.version), kind)
		if kind == "MPL-2.0" {
			if !strings.HasPrefix(m.path, "github.com/") {
				t.Errorf("say where the source of %s is", m.path)
			}
			fmt.Fprintf(&b, "  Unchanged; its source: https://%s/tree/%s\n", m.path, m.version)
		}
		for _, name := range slices.Sorted(maps.Keys(m.texts)) {
			text := m.texts[name]
			if users[text] == nil {
				texts = append(texts, text)
			}
			users[text] = append(users[text], m.path+": "+name)
		}
	}
	for _, text := range texts {
		fmt.Fprintf(&b, "\n%s\n%s\n\n%s\n", strings.Repeat("=", 80), strings.Join(users[text], "\n"), text)
	}
	return b.String()
}

// THIRD_PARTY_LICENSES has the licence of everything that is linked into the program, and nothing
// that may not be.
func TestLicencesOfLinkedModules(t *testing.T) {
	const file = "THIRD_PARTY_LICENSES"
	want := thirdPartyLicences(t)
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil || string(got) != want {
		t.Errorf("%s is not of the modules in go.mod (%v): go test -run Licences . -update makes it anew", file, err)
	}
}

// A release is built for the targets whose modules are listed, with what has to go with it.
func TestReleaseHasLicencesAndTargets(t *testing.T) {
	content, err := os.ReadFile(".goreleaser.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var built []string
	target := regexp.MustCompile(`(?m)^ +- (linux|windows|darwin)_([a-z0-9]+)`)
	for _, m := range target.FindAllStringSubmatch(string(content), -1) {
		built = append(built, m[1]+"/"+m[2])
	}
	if !slices.Equal(built, targets) {
		t.Errorf("it is built for %q, and the licences are for %q", built, targets)
	}
	for _, file := range []string{
		"LICENSE", "THIRD_PARTY_LICENSES", "README.md", "README.ru.md", ".env.example", "packaging/pzbridge.service",
	} {
		if !strings.Contains(string(content), "      - "+file+"\n") {
			t.Errorf("a release has no %s", file)
		}
	}
}
