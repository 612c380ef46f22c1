package kube

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// maxParameters bounds an OpenShift Template's.
const maxParameters = 1_000

// template is an OpenShift Template that is being read: its objects have parameters
// in their texts, ${NAME}, and for whole values, ${{NAME}}.
// Source: openshift/library-go, template/templateprocessing.
type template struct {
	values map[string]string // of the parameters that have one
}

var (
	inText  = regexp.MustCompile(`\$\{([a-zA-Z0-9_]+)\}`)
	inValue = regexp.MustCompile(`^\$\{\{([a-zA-Z0-9_]+)\}\}$`)
)

// openTemplate reads the objects of a Template with the values that it states itself.
func (in *reader) openTemplate(at path, raw json.RawMessage, objects []json.RawMessage, nested int) {
	if nested == maxNested {
		in.failAt(at, fmt.Errorf("lists within lists, deeper than %d", maxNested))
		return
	}
	var o struct {
		Parameters []struct {
			Name  string `json:"name"`
			Value string `json:"value"`
		} `json:"parameters"`
	}
	if !in.decode(at, raw, &o) {
		return
	}
	if len(o.Parameters) > maxParameters {
		in.failAt(at.with("parameters"), fmt.Errorf("a Template of more than %d parameters", maxParameters))
		return
	}
	outer := in.template
	in.template = &template{values: make(map[string]string)}
	for _, p := range o.Parameters {
		if p.Value != "" && len(p.Value) <= 4096 {
			in.template.values[p.Name] = p.Value
		}
	}
	for i, object := range objects {
		in.object(at.with("objects", i), in.template.fill(object, new(maxStream)), "", "", nested+1)
	}
	in.template = outer
}

// fill puts the values of parameters into a JSON text, as long as it does not get
// larger by more than left bytes.
func (t *template) fill(raw json.RawMessage, left *int) json.RawMessage {
	var value any
	decoder := json.NewDecoder(strings.NewReader(string(raw)))
	decoder.UseNumber()
	if !strings.Contains(string(raw), "${") || decoder.Decode(&value) != nil {
		return raw
	}
	filled, err := json.Marshal(t.filled(value, left))
	if err != nil {
		return raw
	}
	return filled
}

func (t *template) filled(value any, left *int) any {
	switch value := value.(type) {
	case map[string]any:
		for name, inner := range value {
			value[name] = t.filled(inner, left)
		}
	case []any:
		for i, inner := range value {
			value[i] = t.filled(inner, left)
		}
	case string:
		if whole := inValue.FindStringSubmatch(value); whole != nil {
			given, known := t.values[whole[1]]
			var parsed any
			if known && json.Unmarshal([]byte(given), &parsed) == nil {
				return json.RawMessage(given)
			}
			return value
		}
		return inText.ReplaceAllStringFunc(value, func(sign string) string {
			given, known := t.values[sign[2:len(sign)-1]]
			if *left -= len(given); !known || *left < 0 {
				return sign
			}
			return given
		})
	}
	return value
}

// hint is said where a text that has to be something else is of a Template's
// parameters; nothing of other texts.
func (t *template) hint(text string) string {
	if t == nil || !strings.Contains(text, "${") {
		return ""
	}
	return "; if it is a parameter of the Template without a value, fill it in first and give what comes of it: oc process --local -f FILE -p NAME=VALUE -o yaml"
}
