package sink

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"sluice/pkg/batch"
)

func TestClaimCovers(t *testing.T) {
	for name, tt := range map[string]struct {
		have []span
		ask  span
		want bool
	}{
		"the same":                {[]span{{0, 9}}, span{0, 9}, true},
		"whole covers a part":     {[]span{whole}, span{5, 9}, true},
		"a part is not whole":     {[]span{{0, 9}}, whole, false},
		"halves cover":            {[]span{{0, 4}, {5, 9}}, span{0, 9}, true},
		"halves in any order":     {[]span{{5, 9}, {0, 4}}, span{0, 9}, true},
		"a hole":                  {[]span{{0, 3}, {5, 9}}, span{0, 9}, false},
		"quarters cover a half":   {[]span{{0, 1}, {2, 4}, {5, 9}}, span{0, 4}, true},
		"disjoint":                {[]span{{5, 9}}, span{0, 4}, false},
		"nested":                  {[]span{{0, 9}, {0, 4}}, span{3, 4}, true},
		"the last index of all":   {[]span{{0, whole.last - 1}}, whole, false},
		"halves of everything":    {[]span{{0, 7}, {8, whole.last}}, whole, true},
		"overlapping from behind": {[]span{{3, 9}, {0, 5}}, span{0, 9}, true},
	} {
		t.Run(name, func(t *testing.T) {
			c := &claim{span: tt.have[0]}
			for _, s := range tt.have[1:] {
				before := *c
				next := c.with(s)
				assert.Equal(t, before, *c, "with changes nothing")
				c = next
			}
			assert.Equal(t, tt.want, c.coversAll(tt.ask))
			all := true
			if tt.ask.last < 100 {
				for i := tt.ask.first; i <= tt.ask.last; i++ {
					all = all && c.covers(i)
				}
				assert.Equal(t, tt.want, all, "index by index")
			}
		})
	}
}

func TestRememberedForgetsTheOldest(t *testing.T) {
	r := newRemembered(3)
	ids := []batch.ID{{1}, {2}, {3}, {4}, {5}}
	for i, id := range ids {
		r.put(id, &claim{digest: batch.Digest{byte(i)}})
		r.put(id, &claim{digest: batch.Digest{byte(i)}, span: whole})
		assert.LessOrEqual(t, len(r.known), 3)
	}
	assert.Nil(t, r.known[ids[0]])
	assert.Nil(t, r.known[ids[1]])
	for _, id := range ids[2:] {
		assert.Equal(t, whole, r.known[id].span, "the newer claim of a batch counts")
	}
	r.forget()
	assert.Empty(t, r.known)
}
