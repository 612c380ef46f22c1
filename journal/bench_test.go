package journal

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A record of 600 bytes is about a finding as JSON.
const typical = 600

func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{1, 10, 100} {
		b.Run(fmt.Sprint("batch", size), func(b *testing.B) {
			j, _ := open(b, b.TempDir(), func(o *Options) { o.MaxBytes = 64 << 20 })
			var sequence uint64
			for b.Loop() {
				batch := make([]Record, 0, size)
				for range size {
					sequence++
					batch = append(batch, numbered("e", sequence, typical))
				}
				must(b, j.Commit(Batch{Records: batch, Put: map[string][]byte{fmt.Sprint(sequence % 50): batch[0].Data}}))
			}
			b.ReportMetric(float64(sequence)/b.Elapsed().Seconds(), "records/s")
		})
	}
	b.Run("8 callers", func(b *testing.B) {
		j, _ := open(b, b.TempDir(), func(o *Options) { o.MaxBytes = 64 << 20 })
		value := make([]byte, typical)
		b.SetParallelism(4)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				must(b, j.Commit(Batch{Put: map[string][]byte{"a": value}}))
			}
		})
	})
}

// full is a journal of 64 MiB, filled past its bound.
func full(b *testing.B, records int) string {
	dir := b.TempDir()
	j, _ := open(b, dir, func(o *Options) { o.MaxBytes = 64 << 20 })
	for sequence := uint64(0); sequence < uint64(records); {
		var batch []Record
		for range 500 {
			sequence++
			batch = append(batch, numbered("e", sequence, typical))
		}
		must(b, j.Append(batch...))
	}
	must(b, j.Close())
	return dir
}

func BenchmarkOpen(b *testing.B) {
	dir := full(b, 100_000)
	for b.Loop() {
		j, _ := open(b, dir, func(o *Options) { o.MaxBytes = 64 << 20 })
		must(b, j.Close())
	}
}

func BenchmarkRead(b *testing.B) {
	dir := full(b, 100_000)
	j, _ := open(b, dir, func(o *Options) { o.MaxBytes = 64 << 20 })
	for b.Loop() {
		n := 0
		for _, err := range j.All(Key{}) {
			must(b, err)
			n++
		}
	}
	b.ReportMetric(float64(b.N)*100_000/b.Elapsed().Seconds(), "records/s")
}

// BenchmarkMemory reports what an open journal of 64 MiB that was read through and is
// appended to adds to the process, in MiB of resident memory.
func BenchmarkMemory(b *testing.B) {
	dir := full(b, 150_000)
	info, err := os.Stat(filepath.Join(dir, fileName))
	must(b, err)
	for b.Loop() {
		before, _ := resident(b)
		j, _ := open(b, dir, func(o *Options) { o.MaxBytes = 64 << 20 })
		opened, _ := resident(b)
		for _, err := range j.All(Key{}) {
			must(b, err)
		}
		read, mapped := resident(b)
		for sequence := range uint64(1000) {
			must(b, j.Append(numbered("f", sequence+1, typical)))
		}
		appended, _ := resident(b)
		must(b, j.Close())
		b.ReportMetric(float64(info.Size())/(1<<20), "MiB-file")
		b.ReportMetric(opened-before, "MiB-open")
		b.ReportMetric(read-before, "MiB-read")
		b.ReportMetric(mapped, "MiB-of-file-mapped")
		b.ReportMetric(appended-before, "MiB-appended")
	}
}

// resident is the process's resident memory, and the part of it that is of files.
func resident(b testing.TB) (total, file float64) {
	status, err := os.ReadFile("/proc/self/status")
	must(b, err)
	for line := range strings.Lines(string(status)) {
		var kib float64
		if _, err := fmt.Sscanf(line, "VmRSS: %f kB", &kib); err == nil {
			total = kib / 1024
		}
		if _, err := fmt.Sscanf(line, "RssFile: %f kB", &kib); err == nil {
			file = kib / 1024
		}
	}
	return total, file
}
