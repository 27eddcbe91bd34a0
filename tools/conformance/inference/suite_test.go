package inference

import (
	"flag"
	"fmt"
	"slices"
	"testing"
)

// list prints what there is and runs nothing.
var list = flag.Bool("list-tests", false, "print the name of each test and what it checks")

func TestInference(t *testing.T) {
	tests := slices.Concat(poolTests, routingTests, pickerTests)
	if *list {
		for _, test := range tests {
			fmt.Printf("test\t%s\t%s\n", test.Name, test.Checks)
		}
		return
	}
	Run(t, tests)
}
