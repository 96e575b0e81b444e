package prove

import (
	"testing"

	"go.uber.org/goleak"
)

// The proxy's library leaves goroutines behind where a connection ended while it
// held bytes for it: one test is about that.
func TestMain(m *testing.M) {
	const proxy = "github.com/Shopify/toxiproxy/v2"
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction(proxy+".(*ToxicLink).read"),
		goleak.IgnoreAnyFunction(proxy+".(*ToxicLink).write"),
		goleak.IgnoreAnyFunction(proxy+".(*ToxicLink).AddToxic"),
		goleak.IgnoreAnyFunction(proxy+".(*ToxicCollection).chainAddToxic"),
		goleak.IgnoreAnyFunction(proxy+".(*Proxy).server"),
		goleak.IgnoreAnyFunction(proxy+".(*Proxy).freeBlocker"),
		goleak.IgnoreAnyFunction(proxy+".(*Proxy).Stop"),
		goleak.IgnoreAnyFunction(proxy+"/toxics.(*ToxicStub).Run"),
	)
}
