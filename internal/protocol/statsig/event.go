package statsig

import (
	"sluice/internal/protocol/wire"
	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// What SDKs call their own events: everything with this prefix.
const internalPrefix = "statsig::"

const (
	gateExposure   = internalPrefix + "gate_exposure"
	configExposure = internalPrefix + "config_exposure"
	layerExposure  = internalPrefix + "layer_exposure"
)

// noise reports whether an event is about the SDK itself: no person did or saw
// anything. Such events are counted and dropped. The other internal ones (there
// is statsig::identify, and later versions may bring more) are kept like a
// customer's own, unless they have no unit: see finish.
func noise(name string) bool {
	switch name {
	case internalPrefix + "diagnostics",
		internalPrefix + "log_line",
		internalPrefix + "non_exposed_checks",
		internalPrefix + "default_value_type_mismatch",
		internalPrefix + "session_recording": // of a screen, in megabyte slices; for a player
		return true
	}
	return false
}

// stableIDType is the unit type of a device's own id: the name it has among
// user.customIDs, where SDKs put it that are told to.
const stableIDType = "stableID"

// Attributes that do not come from the metadata under their own name.
const (
	attrLayer     = "layer"
	attrParameter = "parameter"
	attrSecondary = "secondary_exposures"
	attrValue     = "value" // of a custom event, where it is no number
)

// Fields of an event of which each may come once.
const (
	seenName = 1 << iota
	seenUser
	seenTime
	seenValue
	seenMetadata
	seenSecondary
	seenStatsigMetadata
	seenUserID
	seenCustomIDs
)

// draft is one event while it is read: members come in any order, and only the
// name says what the metadata mean. Its attributes gather in decoder.Attrs.
type draft struct {
	name      string
	userID    string
	customKey string // of user.customIDs, the first by name
	customID  string
	hasTime   bool
	time      int64
	value     string // as text
	number    bool   // value came as a number
	secondary string // JSON text
}

// event reads one element of the event list.
func (d *decoder) event() {
	d.nested = d.nested[:0]
	var e draft
	for d.More() {
		switch d.Key() {
		case "eventName":
			d.Once(seenName, "name")
			if !d.Null() {
				e.name = d.Reader.Text()
				d.Settle("name")
			}
		case "time":
			d.Once(seenTime, "time")
			e.time, e.hasTime = d.Millis("time")
		case "user":
			d.Once(seenUser, "user")
			d.Within = "user"
			d.readUser(&e)
			d.Settle("user")
		case "metadata":
			d.Once(seenMetadata, "metadata")
			d.Within = "metadata"
			d.readMetadata()
			d.Settle("metadata")
		case "value":
			d.Once(seenValue, "value")
			d.readValue(&e)
			d.Settle("value")
		case "secondaryExposures":
			d.Once(seenSecondary, "secondaryExposures")
			d.readSecondary(&e)
			d.Settle("secondaryExposures")
		case "statsigMetadata":
			d.Once(seenStatsigMetadata, "statsigMetadata")
			d.Within = "statsigMetadata"
			d.Flat("statsigMetadata.", wire.LeaveOut)
		default:
			d.Ignore()
		}
	}
	d.finish(&e)
}

// readMetadata keeps the metadata, which are the customer's own, as attributes;
// what is no scalar goes to decoder.nested as JSON text.
func (d *decoder) readMetadata() {
	if !d.Object() {
		return
	}
	for d.More() {
		name := d.Key()
		switch d.Kind() {
		case jsonscan.Array, jsonscan.Object:
			d.Member(name, wire.AsText)
			if n := len(d.Attrs); n > 0 && d.Attrs[n-1].Key == name {
				d.nested, d.Attrs = append(d.nested, d.Attrs[n-1]), d.Attrs[:n-1]
			}
		default:
			d.Member(name, wire.AsText)
		}
	}
}

// readUser reads who it was and, as attributes, what may be told about them. An
// e-mail address, an IP address, the user agent and private attributes are never
// read.
func (d *decoder) readUser(e *draft) {
	if !d.Object() {
		return
	}
	for d.More() {
		switch d.Key() {
		case "userID":
			d.Once(seenUserID, "unit_id")
			e.userID = d.ID("unit_id")
		case "customIDs":
			d.Once(seenCustomIDs, "unit_id")
			d.readCustomIDs(e)
		case "country":
			d.Member("user.country", wire.LeaveOut)
		case "locale":
			d.Member("user.locale", wire.LeaveOut)
		case "appVersion":
			d.Member("user.appVersion", wire.LeaveOut)
		case "custom":
			d.Flat("user.custom.", wire.LeaveOut)
		case "analyticsOnlyMetadata":
			d.Flat("user.analyticsOnlyMetadata.", wire.LeaveOut)
		case "statsigEnvironment":
			d.Flat("user.statsigEnvironment.", wire.LeaveOut)
		default:
			d.Ignore()
		}
	}
}

// readCustomIDs keeps every id as an attribute, and remembers the first by name
// in case it has to be the unit.
func (d *decoder) readCustomIDs(e *draft) {
	if !d.Object() {
		return
	}
	for d.More() {
		name := d.Key()
		id := d.ID("unit_id")
		if id == "" || name == "" { // without a name it would pass for a user's
			continue
		}
		if e.customID == "" || name < e.customKey {
			e.customKey, e.customID = name, id
		}
		d.Put(d.Path("user.customIDs.", name), id)
	}
}

// readValue reads the value of an event as text.
func (d *decoder) readValue(e *draft) {
	switch d.Kind() {
	case jsonscan.Array, jsonscan.Object:
		e.value = wire.String(d.Skip())
	default:
		var k jsonscan.Kind
		k, e.value = d.Scalar()
		e.number = k == jsonscan.Number
	}
}

// readSecondary keeps the gates that were evaluated on the way, if there are any.
func (d *decoder) readSecondary(e *draft) {
	if d.Null() {
		return
	}
	m := d.Mark()
	if !d.Array() || !d.More() {
		return
	}
	d.Rewind(m)
	// One so long that it could not be kept must not cost the exposure.
	if raw := d.Skip(); len(raw) <= schema.MaxAttributeValue {
		e.secondary = wire.String(raw)
	}
}
