package journal

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// contents are the files of a directory.
func contents(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, entry := range entries {
		text, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		must(t, err)
		files[entry.Name()] = text
	}
	return files
}

// snapshot takes one, and fails if it changed anything in the directory.
func snapshot(t *testing.T, dir string, options Options) (*Journal, Report) {
	t.Helper()
	before := contents(t, dir)
	j, report, err := Snapshot(dir, options)
	must(t, err)
	t.Cleanup(func() { j.Close() })
	if !maps.EqualFunc(before, contents(t, dir), bytes.Equal) {
		t.Fatal("the directory is not what it was")
	}
	return j, report
}

// TestASnapshotOfADamagedJournal yields what is whole, counts the rest, and changes nothing.
func TestASnapshotOfADamagedJournal(t *testing.T) {
	file, want := sample(t)
	byKey := make(map[Key]Record)
	for _, r := range want {
		byKey[r.Key()] = r
	}
	random := rand.New(rand.NewPCG(11, uint64(time.Now().UnixNano())))
	used := len(bytes.TrimRight(file, "\x00"))
	for name, change := range map[string]func([]byte) []byte{
		"whole":             func(b []byte) []byte { return b },
		"a page of zeros":   func(b []byte) []byte { clear(b[9*pageSize : 10*pageSize]); return b },
		"one header":        func(b []byte) []byte { clear(b[:pageSize]); return b },
		"both headers":      func(b []byte) []byte { clear(b[:2*pageSize]); return b },
		"cut":               func(b []byte) []byte { return b[:used/2] },
		"empty":             func([]byte) []byte { return nil },
		"a byte is another": func(b []byte) []byte { b[random.IntN(used)] ^= 1; return b },
	} {
		t.Run(name, func(t *testing.T) {
			j, report := snapshot(t, damaged(t, change(bytes.Clone(file))), Options{})
			got := all(t, j)
			for _, r := range got {
				same(t, r, byKey[r.Key()])
			}
			if missing := len(want) - len(got); missing != int(report.Lost) && !report.Uncounted || report.Records != len(got) || report.SetAside != "" {
				t.Errorf("%d records are missing: %+v", missing, report)
			}
			if whole := name == "whole"; whole && (len(got) != len(want) || len(report.Damage) > 0) || !whole && name != "a byte is another" && len(report.Damage) == 0 {
				t.Errorf("%d of %d records: %+v", len(got), len(want), report)
			}
			if name == "a page of zeros" && (len(got) == 0 || report.Lost == 0 && !report.Uncounted) {
				t.Errorf("%d records: %+v", len(got), report)
			}
			if err := j.Append(numbered("after", 1, 1)); err == nil {
				t.Error("it was written to")
			}
		})
	}
}

// TestASnapshotOfTheFirstForm has what carrying over would give.
func TestASnapshotOfTheFirstForm(t *testing.T) {
	file, want := firstFormFile(t)
	j, report := snapshot(t, damaged(t, file), Options{Classify: byLength})
	if report.Form != firstForm || len(report.Damage) > 0 || report.Records != len(want.Records) || report.State != len(want.State) {
		t.Errorf("%+v", report)
	}
	want.mustHold(t, j)
}

// TestASnapshotKeepsNobodyOut: whoever writes can start while a snapshot is read, and has the
// directory for himself.
func TestASnapshotKeepsNobodyOut(t *testing.T) {
	dir := t.TempDir()
	writer, _ := open(t, dir)
	must(t, writer.Append(numbered("e", 1, 10)))
	if _, _, err := Snapshot(dir, Options{}); !errors.Is(err, ErrLocked) {
		t.Errorf("while somebody writes: %v", err)
	}
	must(t, writer.Close())
	j, report := snapshot(t, dir, Options{})
	writer, _ = open(t, dir)
	must(t, writer.Append(numbered("e", 2, 10)))
	if got := all(t, j); len(got) != 1 || report.Records != 1 {
		t.Errorf("%d records of the moment before, %+v", len(got), report)
	}
}

func TestASnapshotOfNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	for range 2 {
		if _, _, err := Snapshot(dir, Options{}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v", err)
		}
		if at, err := Written(dir); err != nil || !at.IsZero() {
			t.Errorf("%v, %v", at, err)
		}
		must(t, os.MkdirAll(dir, 0o700))
		if len(contents(t, dir)) > 0 {
			t.Error("it made something")
		}
	}
}
