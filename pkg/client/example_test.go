package client_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"sluice/pkg/client"
)

func Example() {
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusAccepted)
		fmt.Fprint(w, `{"batch_id":"e85725a7-fa38-8aec-94d9-f4e42e794f82","accepted":2,"rejected":[]}`)
	}))
	defer collector.Close()

	logger, err := client.New(client.Options{
		Endpoints: []string{collector.URL},
		Key:       "slk_example",
		OnError:   func(err error) { fmt.Println(err) },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	logger.Exposure(client.Exposure{
		Experiment: "checkout_button", Variant: "green", UnitID: "user-17",
		Attributes: map[string]any{"country": "DE"},
	})
	logger.Event(client.Event{Name: "order", UnitID: "user-17", Value: new(59.90)})

	// At the end of the program: give the last batch a few seconds.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := logger.Close(ctx); err != nil {
		fmt.Println(err)
	}
	fmt.Println(logger.Stats().Acknowledged, "acknowledged")
	// Output: 2 acknowledged
}
