// Promql reads a JSON list of PromQL expressions and writes for each which series it selects and
// which labels its result has, as Prometheus' own parser understands it. It fails where one is
// no PromQL.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/parser"
)

// understood is what one expression asks for.
type understood struct {
	Expression string     `json:"expression"`
	Selectors  []selector `json:"selectors"`
	Labels     []string   `json:"labels"` // by which it groups, anywhere in it
}

type selector struct {
	Name     string    `json:"name"`
	Matchers []matcher `json:"matchers"`
}

type matcher struct {
	Label string `json:"label"`
	Type  string `json:"type"` // =, !=, =~ or !~
	Value string `json:"value"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "promql:", err)
		os.Exit(1)
	}
}

func run() error {
	var expressions []string
	if err := json.NewDecoder(os.Stdin).Decode(&expressions); err != nil {
		return err
	}
	list := make([]understood, 0, len(expressions))
	for _, text := range expressions {
		expression, err := parser.NewParser(parser.Options{}).ParseExpr(text)
		if err != nil {
			return fmt.Errorf("%s: %w", text, err)
		}
		one := understood{Expression: text}
		parser.Inspect(expression, func(n parser.Node, _ []parser.Node) error {
			switch n := n.(type) {
			case *parser.VectorSelector:
				one.Selectors = append(one.Selectors, selects(n))
			case *parser.AggregateExpr:
				one.Labels = append(one.Labels, n.Grouping...)
			case *parser.BinaryExpr:
				if n.VectorMatching != nil {
					one.Labels = append(one.Labels, n.VectorMatching.MatchingLabels...)
				}
			}
			return nil
		})
		list = append(list, one)
	}
	return json.NewEncoder(os.Stdout).Encode(list)
}

func selects(n *parser.VectorSelector) selector {
	s := selector{Name: n.Name}
	for _, m := range n.LabelMatchers {
		if m.Name != model.MetricNameLabel {
			s.Matchers = append(s.Matchers, matcher{Label: m.Name, Type: m.Type.String(), Value: m.Value})
		}
	}
	return s
}
