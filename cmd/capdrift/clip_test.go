package main

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/journal"
)

func TestClip(t *testing.T) {
	long := strings.Repeat("<", 1000)
	for what, row := range map[string]struct {
		text, want string
		limit      int
	}{
		"what fits stays as it is":           {`{"b": 1, "a": "<"}`, `{"b": 1, "a": "<"}`, 18},
		"a text ends with its whole length":  {`"` + long + `"`, `"\u003c\u003c…[clipped]"`, 30},
		"no character is cut in two":         {`"` + strings.Repeat("é", 40) + `"`, `"ééé…[clipped]"`, 21},
		"a list ends with its whole length":  {`["a","b","c","d","e","f","g","h","i","j"]`, `["a","b","…[clipped]"]`, 25},
		"of a list of others the end goes":   {`[{"a":1},{"a":2},{"a":3},{"a":4},{"a":5},{"a":6},{"a":7},{"a":8},{"a":9},{"a":10}]`, `[{"a":1},{"a":2},{"a":3},{"a":4},{"a":5},{"a":6},{"a":7}]`, 64},
		"what is small is whole":             {`{"id":"a","n":12345,"x":"` + long + `","y":"` + long + `"}`, `{"id":"a","n":12345,"x":"\u003c…[clipped]","y":"\u003c\u003c…[clipped]"}`, 78},
		"no keys without room for all":       {`{"aaaaaaaaaaaaaaaa":1,"b":"` + long + `"}`, `{}`, 28},
		"what cannot be cut further is null": {`123456789`, `null`, 5},
	} {
		got, clipped, err := clipJSON([]byte(row.text), row.limit)
		if err != nil || string(got) != row.want || clipped != (row.text != row.want) || len(got) > row.limit {
			t.Errorf("%s: %v %d bytes %s, want %s", what, err, len(got), got, row.want)
		}
	}
}

// everywhere sets all texts of a value to one, all lists to so many of it, and what may be
// nil to something.
func everywhere(v reflect.Value, text string, many int) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		everywhere(v.Elem(), text, many)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				everywhere(v.Field(i), text, many)
			}
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), many, many))
		for i := range many {
			everywhere(v.Index(i), text, many/64)
		}
	}
}

// checkRecorded fails unless the records of a finding and a container with the text
// everywhere are within their bounds, and say what they must.
func checkRecorded(t *testing.T, text string, many int) {
	t.Helper()
	var finding drift.Finding
	everywhere(reflect.ValueOf(&finding).Elem(), text, many)
	finding.ID, finding.Severity, finding.Capabilities = "0123456789abcdef", drift.Critical, 1<<41-1
	var container drift.Container
	everywhere(reflect.ValueOf(&container).Elem(), text, many)
	container.ID = strings.Repeat("f", 64)
	for limit, change := range map[int]agent.Change{
		maxFinding:  {Kind: agent.FindingOpened, Finding: &finding},
		maxRecorded: {Kind: agent.ContainerChanged, Container: &container},
	} {
		record, err := recordOf(change)
		if err != nil || len(record.Data) > limit || len(record.Owner) > journal.MaxName {
			t.Fatalf("%s: %v, %d bytes, owner of %d", change.Kind, err, len(record.Data), len(record.Owner))
		}
		var told entry
		if err := json.Unmarshal(record.Data, &told); err != nil {
			t.Fatalf("%s: %v", change.Kind, err)
		}
		switch {
		case told.Finding != nil:
			if f := told.Finding; f.ID != finding.ID || f.Severity != drift.Critical || f.Capabilities != capdecode.Set(1<<41-1) {
				t.Fatalf("%s %s %v", f.ID, f.Severity, f.Capabilities)
			}
		case told.Container == nil || told.Container.ID != container.ID:
			t.Fatalf("%.100s", record.Data)
		}
		if whole, _ := json.Marshal(change.Finding); told.Clipped && told.Finding != nil && len(whole) < maxFinding/2 {
			t.Fatalf("clipped although it has %d bytes", len(whole))
		}
	}
	kept, err := encodeFinding(&finding)
	var again drift.Finding
	if err != nil || len(kept) > maxFinding || json.Unmarshal(kept, &again) != nil || again.ID != finding.ID {
		t.Fatalf("%v, %d bytes", err, len(kept))
	}
}

// TestHostileTexts: texts of an author are within the bound wherever they are.
func TestHostileTexts(t *testing.T) {
	for _, text := range []string{"", "a", "<", strings.Repeat("<", 100), strings.Repeat("<", 50_000), strings.Repeat("\xff\u2028é\"", 10_000)} {
		for _, many := range []int{0, 1, 40, 600} {
			if len(text)*many < 1<<17 || many < 2 {
				checkRecorded(t, text, many)
			}
		}
	}
}

// FuzzClip: whatever is encoded is within the bound, still JSON, and measured right.
func FuzzClip(f *testing.F) {
	f.Add("<", uint16(100), uint16(7), uint16(90))
	f.Add("\xff\u2028\\\x00é", uint16(3000), uint16(0), uint16(5000))
	f.Fuzz(func(t *testing.T, text string, repeated, many, limit uint16) {
		text = strings.Repeat(text, min(int(repeated), 1<<14/(len(text)+1)))
		value := map[string]any{
			"text": text, text: 1.5, "list": slices.Repeat([]string{text}, int(many)%50), "none": nil, "is": true,
			"objects": slices.Repeat([]any{map[string]any{"a": text, "b": []any{}}}, int(many)%7),
		}
		encoded, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		bound := max(int(limit), 4)
		got, clipped, err := clipJSON(encoded, bound)
		if err != nil || len(got) > bound || !json.Valid(got) || clipped != (len(encoded) > bound) {
			t.Fatalf("%v: %d bytes of %d, clipped %v: %.200s", err, len(got), bound, clipped, got)
		}
		decoder := json.NewDecoder(bytes.NewReader(encoded))
		decoder.UseNumber()
		var decoded map[string]any
		if err := decoder.Decode(&decoded); err != nil {
			t.Fatal(err)
		}
		for key, one := range decoded {
			exact, err := json.Marshal(one)
			if measured := encodedSize(one); err != nil || measured < len(exact) || measured > len(exact) && !strings.ContainsRune(string(exact), utf8.RuneError) {
				t.Fatalf("%.100q has %d bytes, and is measured as %d", key, len(exact), measured)
			}
		}
		checkRecorded(t, text, int(many)%20)
	})
}
