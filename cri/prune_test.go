package cri

import (
	"bytes"
	"encoding/json"
	"io"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"google.golang.org/protobuf/encoding/protowire"
)

// sample has a field of each shape.
type sample struct {
	Text   string             `json:"text"`
	Number *int               `json:"number"`
	Flag   bool               `json:"flag"`
	Inner  *sample2           `json:"inner"`
	List   []sample2          `json:"list"`
	Map    map[string]sample2 `json:"map"`
	Any    json.RawMessage    `json:"any"`
}

type sample2 struct {
	Deep string `json:"deep"`
}

const seedSample = `{"text":"a\u003cb","skipped":{"x":[1,{"y":"}"}]},"number":-3e0,"flag":true,"Inner":{"deep":"z","o":1},"list":[{"deep":"1"},{}],"map":{"k\n":{"deep":"2"}},"any":[1, "x"]}`

// sameAsJSON fails where decode does not do what json.Unmarshal does.
func sameAsJSON(t *testing.T, text []byte) {
	t.Helper()
	var want sample
	wanted := json.Unmarshal(text, &want)
	got, err := decode[sample](iotest.OneByteReader(bytes.NewReader(text)))
	if (err == nil) != (wanted == nil) {
		t.Fatalf("%q: %v, json.Unmarshal says %v", text, err, wanted)
	}
	if err != nil {
		return
	}
	var a, b bytes.Buffer // white space is not kept
	if want.Any != nil && json.Compact(&a, want.Any) == nil && json.Compact(&b, got.Any) == nil && a.String() == b.String() {
		got.Any = want.Any
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%q is %+v, json.Unmarshal says %+v", text, got, want)
	}
}

func TestDecodeIsJSON(t *testing.T) {
	for _, text := range []string{
		seedSample, "null", "{}", " { } ", "[]", "", " ", "1", `"x"`, "{} {}", "{}x", `{"text":1}`, `{"text":null}`, `{"text":"a` + "\n" + `"}`,
		`{"text":"\ud83d\ude00 \ud83d"}`, `{"text":"\x"}`, `{"text":"\u12g4"}`, `{"text":"` + "\xff" + `"}`, `{"TEXT":"k"}`, `{"\u0074ext":"k"}`, `{"text":"1","text":"2"}`,
		`{"number":01}`, `{"number":1.5}`, `{"number":1e3}`, `{"number":"1"}`, `{"number":-}`, `{"x":tru}`, `{"x":true,}`, `{,}`, `{"x"}`, `{"x":}`, `{x:1}`, `[1,]`, `{"x":[1,]}`, `{"x":[,1]}`,
		`{"list":{}}`, `{"list":[1]}`, `{"list":[null]}`, `{"map":[]}`, `{"map":{"a":null}}`, `{"inner":"x"}`, `{"inner":null}`, `{"any":{"a":{"b":"c"}}}`, `{"any":nul}`,
		`{"a":` + strings.Repeat("[", 9999) + strings.Repeat("]", 9999) + "}", `{"a":` + strings.Repeat("[", 10000) + strings.Repeat("]", 10000) + "}",
	} {
		sameAsJSON(t, []byte(text))
	}
}

// FuzzDecode holds the reading of a stream against encoding/json.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(seedSample))
	f.Add([]byte(`{"text":"\ud83d","any":{"x":[null,true,1.5e-3]}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 1000 { // bounds that encoding/json does not have
			return
		}
		sameAsJSON(t, text)
	})
}

// TestALargeDocumentIsNotHeld: what is skipped costs no memory, however it is made.
func TestALargeDocumentIsNotHeld(t *testing.T) {
	const spec = `"process":{"capabilities":{"bounding":["CAP_KILL"]}}`
	repeat := func(before, part string, n int, after string) io.Reader {
		readers := []io.Reader{strings.NewReader(before)}
		part = strings.Repeat(part, 1024)
		for range n {
			readers = append(readers, strings.NewReader(part))
		}
		return io.MultiReader(append(readers, strings.NewReader(after))...)
	}
	for what, r := range map[string]io.Reader{
		"one text of 48 MiB":         repeat(`{"hostname":"`, `\u003c`, 8192, `",`+spec+"}"),
		"8 million texts":            repeat(`{"args":[""`, `,"<"`, 8192, `],`+spec+"}"),
		"one key of 48 MiB":          repeat(`{"`, `\u003c`, 8192, `":1,`+spec+"}"),
		"2 million annotations":      repeat(`{"annotations":{"a":"b"`, `,"k":"v"`, 2048, `},`+spec+"}"),
		"2 million unknown names":    repeat(`{"process":{"capabilities":{"bounding":["CAP_KILL"`, `,"x"`, 2048, `]}}}`),
		"a cgroup path of 24 MiB":    repeat(`{"linux":{"cgroupsPath":"/`, `x\n`, 8192, `"},`+spec+"}"),
		"16 MiB of white space":      repeat(`{`, " ", 16384, spec+"}"),
		"a handler's name of 48 MiB": repeat(`{"annotations":{"io.kubernetes.cri-o.RuntimeHandler":"`, `\u003c`, 8192, `"},`+spec+"}"),
	} {
		t.Run(what, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			s, err := decodeSpec(r)
			runtime.ReadMemStats(&after)
			if err != nil {
				t.Fatal(err)
			}
			var f facts
			if f.take(s); f.oci == nil || f.oci.Bounding.Len() != 1 || len(f.cgroupPath) > maxPath || len(f.handler) > 300 {
				t.Errorf("%+v", f)
			}
			// Names and keys that are looked up are allocated, one after the other.
			if n := after.HeapInuse - min(before.HeapInuse, after.HeapInuse); n > 8<<20 {
				t.Errorf("%d bytes are held", n)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 2<<20 && !strings.HasPrefix(what, "2 million") {
				t.Errorf("%d bytes were allocated", n)
			}
		})
	}
}

// TestWire reads messages that are no good: they are errors, and never more than that.
func TestWire(t *testing.T) {
	entry := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "info")
	entry = protowire.AppendString(protowire.AppendTag(entry, 2, protowire.BytesType), seedInfo)
	good := protowire.AppendVarint(protowire.AppendTag(nil, 9, protowire.VarintType), 1<<40)
	good = protowire.AppendFixed32(protowire.AppendTag(good, 10, protowire.Fixed32Type), 7)
	good = protowire.AppendFixed64(protowire.AppendTag(good, 11, protowire.Fixed64Type), 7)
	good = protowire.AppendBytes(protowire.AppendTag(good, 2, protowire.BytesType), entry)
	good = protowire.AppendBytes(protowire.AppendTag(good, 1, protowire.BytesType), protowire.AppendVarint(protowire.AppendTag(nil, 3, protowire.VarintType), 1))
	read := func(message []byte) (*verbose, error) {
		v := &verbose{}
		return v, v.read(iotest.HalfReader(bytes.NewReader(message)))
	}
	if v, err := read(good); err != nil || v.state != 1 || !v.told || v.info.PID != 7 {
		t.Errorf("%+v, %v", v, err)
	}
	refused := 0
	for n := range good {
		if _, err := read(good[:n]); err != nil {
			refused++
		}
	}
	if whole := 5; refused != len(good)-whole { // cut between two fields it is shorter, and good
		t.Errorf("%d of %d cut messages were refused", refused, len(good))
	}
	for _, bad := range [][]byte{
		{0x0b}, {0x0f}, // a group, and a type that there is not
		{0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}, // a body of 2^64 bytes
		slices.Repeat([]byte{0xff}, 20),
	} {
		if _, err := read(bad); err == nil {
			t.Errorf("%x is a message", bad)
		}
	}
}

// FuzzWire reads anything as the two kinds of answers.
func FuzzWire(f *testing.F) {
	f.Add([]byte{0x12, 0x04, 0x0a, 0x00, 0x12, 0x00, 0x0a, 0x02, 0x18, 0x01})
	f.Add([]byte{0x0a, 0x06, 0x2a, 0x04, 0x12, 0x02, '{', '}'})
	f.Fuzz(func(t *testing.T, message []byte) {
		v := &verbose{}
		if err := v.read(bytes.NewReader(message)); err == nil {
			got, err := v.facts()
			check(t, got, err)
		}
		if err := new(record).read(bytes.NewReader(message)); err != nil && strings.ContainsAny(err.Error(), "\n\x1b") {
			t.Fatal(err)
		}
	})
}
