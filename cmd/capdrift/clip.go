package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"unicode/utf8"
)

// The bounds of what is written down, in bytes of JSON. Names, labels and lists of
// capabilities are texts of a pod's author, who can make one byte take six ("<" is \u003c).
const (
	maxRecorded = 64 << 10 // of a change
	maxFinding  = 16 << 10 // of a finding, in a change and in the journal's state
)

// clipMark ends what was cut.
const clipMark = "…[clipped]"

// encodeClipped returns a value as JSON within a bound of bytes, and whether it had to clip.
// What is small stays whole; what is large shares the rest evenly. A text or a list of
// texts that was cut ends with a mark; of a list of anything else the end is left out.
func encodeClipped[T any](value *T, limit int) ([]byte, bool, error) {
	// First no text may be much too long by itself: encoding them all would cost the node
	// far more than it cost their author.
	short, cut := shorten(reflect.ValueOf(value), limit/2)
	text, err := json.Marshal(short.Interface())
	if err != nil {
		return nil, false, err
	}
	text, clipped, err := clipJSON(text, limit)
	return text, cut || clipped, err
}

// shorten returns a value in which no text and no list of texts takes more than the given
// bytes of JSON, and whether that is another than it was. It writes to nothing that others
// see.
func shorten(v reflect.Value, limit int) (reflect.Value, bool) {
	switch {
	case v.Kind() == reflect.Pointer && !v.IsNil():
		short, cut := shorten(v.Elem(), limit)
		if !cut {
			return v, false
		}
		pointer := reflect.New(v.Type().Elem())
		pointer.Elem().Set(short)
		return pointer, true
	case v.Kind() == reflect.Struct:
		other := reflect.Value{}
		for i := range v.NumField() {
			short, cut := shorten(v.Field(i), limit)
			if !cut || !v.Type().Field(i).IsExported() {
				continue
			}
			if !other.IsValid() {
				other = reflect.New(v.Type()).Elem()
				other.Set(v)
			}
			other.Field(i).Set(short)
		}
		if other.IsValid() {
			return other, true
		}
	case v.Kind() == reflect.String:
		short := fitText(v.String(), limit)
		if len(short) == v.Len() {
			return v, false
		}
		return reflect.ValueOf(short).Convert(v.Type()), true
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.String:
		return shortenList(v, limit)
	}
	return v, false
}

func shortenList(list reflect.Value, limit int) (reflect.Value, bool) {
	room := limit - len("[]") - len(`"",`) - len(clipMark)
	kept := reflect.MakeSlice(list.Type(), 0, 0)
	cut := false
	for i := range list.Len() {
		short, other := shorten(list.Index(i), limit/8)
		cut = cut || other
		if room -= encodedSize(short.String()) + len(","); room < 0 {
			return reflect.Append(kept, reflect.ValueOf(clipMark).Convert(list.Type().Elem())), true
		}
		kept = reflect.Append(kept, short)
	}
	if !cut {
		return list, false
	}
	return kept, true
}

// clipJSON clips an encoded value.
func clipJSON(text []byte, limit int) ([]byte, bool, error) {
	if len(text) <= limit {
		return text, false, nil
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		return nil, false, fmt.Errorf("clipping: %w", err)
	}
	clipped, _ := fit(value, limit)
	text, err := json.Marshal(clipped)
	return text, true, err
}

// fit returns a value of at most the given bytes of JSON, and how many it has. What cannot
// be cut any further is null.
func fit(value any, limit int) (any, int) {
	size := encodedSize(value)
	if size <= limit {
		return value, size
	}
	switch v := value.(type) {
	case string:
		value = fitText(v, limit)
	case []any:
		value = fitList(v, limit)
	case map[string]any:
		value = fitObject(v, limit)
	default:
		value = nil
	}
	if size = encodedSize(value); size > limit {
		return nil, len("null")
	}
	return value, size
}

// fitText looks no further into a text than it keeps of it.
func fitText(text string, limit int) string {
	room, end := limit-len(`""`), -1 // where to cut it
	for at, r := range text {
		if end < 0 && room < encodedRune(r)+len(clipMark) {
			end = at
		}
		if room -= encodedRune(r); room < 0 {
			if end = max(end, 0); limit < len(`""`)+len(clipMark) {
				return ""
			}
			return text[:end] + clipMark
		}
	}
	return text
}

// fitList keeps the beginning. No element may take more than an eighth, so that some are
// left of a list of long ones.
func fitList(list []any, limit int) []any {
	_, texts := list[0].(string)
	room := limit - len("[]")
	if texts {
		room -= encodedSize(clipMark)
	}
	kept := []any{}
	for _, element := range list {
		element, size := fit(element, limit/8)
		if room -= size + len(","); room < 0 {
			break
		}
		kept = append(kept, element)
	}
	if texts && len(kept) < len(list) && encodedSize(clipMark)+len("[]") <= limit {
		kept = append(kept, clipMark)
	}
	return kept
}

// fitObject keeps all keys, where there is room for them.
func fitObject(object map[string]any, limit int) map[string]any {
	room := limit - len("{}")
	sizes := make(map[string]int, len(object))
	for key, value := range object {
		sizes[key] = encodedSize(value)
		room -= encodedSize(key) + len(":,")
	}
	smallest := slices.SortedFunc(maps.Keys(object), func(a, b string) int {
		return cmp.Or(cmp.Compare(sizes[a], sizes[b]), cmp.Compare(a, b))
	})
	kept := make(map[string]any, len(object))
	for i, key := range smallest {
		if room < len("null") {
			break
		}
		var size int
		kept[key], size = fit(object[key], room/(len(smallest)-i))
		room -= size
	}
	return kept
}

// encodedSize is how many bytes json.Marshal makes of a decoded value.
func encodedSize(value any) int {
	switch v := value.(type) {
	case nil:
		return len("null")
	case bool:
		return len(fmt.Sprint(v))
	case json.Number:
		return len(v)
	case string:
		size := len(`""`)
		for _, r := range v {
			size += encodedRune(r)
		}
		return size
	case []any:
		size := len("[]") + max(0, len(v)-1)
		for _, element := range v {
			size += encodedSize(element)
		}
		return size
	case map[string]any:
		size := len("{}") + max(0, len(v)-1)
		for key, element := range v {
			size += encodedSize(key) + len(":") + encodedSize(element)
		}
		return size
	}
	panic(fmt.Sprintf("%T is nothing that JSON decodes to", value))
}

// encodedRune is how many bytes json.Marshal makes at most of a character of a text. Of
// what is no UTF-8, which ranging over the text makes utf8.RuneError, it makes as many as of
// the longest.
func encodedRune(r rune) int {
	switch r {
	case '"', '\\', '\b', '\f', '\n', '\r', '\t':
		return len(`\n`)
	case '<', '>', '&', '\u2028', '\u2029', utf8.RuneError:
		return len(`\u003c`)
	}
	if r < ' ' {
		return len(`\u0000`)
	}
	return utf8.RuneLen(r)
}
