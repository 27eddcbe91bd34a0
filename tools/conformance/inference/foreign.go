package inference

import (
	"context"
	"flag"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Flags that put a picker under test in the place of the suite's own. It has to take endpoints from the
// header test-epp-endpoint-selection and to report who served in x-conformance-test-served-endpoint, as the
// public suite asks of pickers too.
var (
	pickerImage = flag.String("picker-image", "", "image of a picker under test, in place of the suite's own")
	pickerArgs  = flag.String("picker-args", "", "its arguments, with spaces between; {pool} stands for the pool's name")
)

// pickerSuffix ends the name of each picker's Deployment; the pool's name is before it.
const pickerSuffix = "-picker"

// isForeign says whether pickers are not the suite's own, which alone can be told to refuse a request.
func isForeign() bool {
	return *pickerImage != ""
}

// replacePickers puts the picker under test in the place of the suite's own, at every pool.
func (s *Suite) replacePickers(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), s.TimeoutConfig.NamespacesMustBeReady)
	defer cancel()
	var list appsv1.DeploymentList
	require.NoError(t, s.Client.List(ctx, &list, client.InNamespace(Namespace)))
	var replaced []string
	for _, deployment := range list.Items {
		pool, isPicker := strings.CutSuffix(deployment.Name, pickerSuffix)
		if !isPicker {
			continue
		}
		patch := client.MergeFrom(deployment.DeepCopy())
		container := &deployment.Spec.Template.Spec.Containers[0]
		container.Image = *pickerImage
		container.Args = strings.Fields(strings.ReplaceAll(*pickerArgs, "{pool}", pool))
		require.NoErrorf(t, s.Client.Patch(ctx, &deployment, patch), "Deployment %s", deployment.Name)
		replaced = append(replaced, deployment.Name)
	}
	require.NotEmpty(t, replaced, "no picker to replace")
	for _, name := range replaced {
		s.settled(t, ctx, name, 1)
	}
	t.Logf("pickers are %s %s", *pickerImage, *pickerArgs)
}
