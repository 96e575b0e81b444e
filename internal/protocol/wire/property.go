package wire

import (
	"sluice/pkg/jsonscan"
	"sluice/pkg/schema"
)

// Property reads a value that a customer gave an event and keeps it as an
// attribute: what Member does with AsText. An array or object too long to be kept
// is left out: it must not cost the event.
func (d *Decoder) Property(name string) {
	switch d.Kind() {
	case jsonscan.Array, jsonscan.Object:
		if raw := d.Skip(); len(raw) <= schema.MaxAttributeValue {
			d.Put(name, String(raw))
		}
		d.Settle(First(d.Within, "attributes"))
	default:
		d.Member(name, AsText)
	}
}

// Properties reads an object (or null) as Flat does with AsText, without properties
// named as Contact has it, and without nested ones that are too long.
func (d *Decoder) Properties(prefix string) {
	if !d.Object() {
		d.Settle(First(d.Within, "attributes"))
		return
	}
	for d.More() {
		if name := d.Key(); Contact(name) {
			d.Ignore()
		} else {
			d.Property(d.Path(prefix, name))
		}
	}
}

// ISOTime reads a time as Time does, and the other ways to write ISO 8601 that are
// met: without an offset, which stands for UTC, and with one that has no colon.
func (d *Decoder) ISOTime(field string) (us int64, ok bool) {
	return d.time(field, "ISO 8601 or milliseconds since the Unix epoch", ParseISO)
}

// ParseISO reads what ISOTime reads.
func ParseISO(s string) (us int64, ok bool) {
	if us, ok = ParseTime(s); ok || len(s) < len("2006-01-02T15:04:05") {
		return us, ok
	}
	if n := len(s) - len("+0000"); s[n] == '+' || s[n] == '-' {
		if us, ok = schema.ParseTime(s[:n+3] + ":" + s[n+3:]); ok {
			return us, ok
		}
	}
	return schema.ParseTime(s + "Z")
}

// Contact reports whether a property is named like what must not be kept of a
// person without being asked for: e-mail and IP address, telephone number, user
// agent, password. Case and what stands between words do not matter.
func Contact(name string) bool {
	if !contactInitial(name) {
		return false
	}
	var buf [maxWords]byte
	switch string(letters(&buf, name)) {
	case "email", "emailaddress", "useremail", "phone", "phonenumber", "telephone", "mobilephone",
		"ip", "ipaddress", "clientip", "useragent", "rawuseragent", "password":
		return true
	}
	return false
}

// contactInitial tells by its first letter that a name is none of Contact's, which
// most are not.
func contactInitial(name string) bool {
	for i := range len(name) {
		switch c := name[i]; c {
		case '_', '-', '.', ' ', '$':
		default:
			switch c | 0x20 {
			case 'c', 'e', 'i', 'm', 'p', 'r', 't', 'u':
				return true
			}
			return false
		}
	}
	return false
}

// Identity reports whether a trait of a person is named like one that says who it
// is: what Contact knows, names, postal address, birthday, picture.
func Identity(name string) bool {
	var buf [maxWords]byte
	switch string(letters(&buf, name)) {
	case "name", "firstname", "lastname", "middlename", "fullname", "displayname", "nickname", "surname", "username",
		"birthday", "birthdate", "dateofbirth", "dob", "address", "street", "streetaddress", "postalcode", "zip", "zipcode",
		"avatar", "photo":
		return true
	}
	return Contact(name)
}

// maxWords is longer than any name in the lists above.
const maxWords = 16

// letters returns the letters and digits of a name in lower case; nothing where
// they are too many to be one of the lists'.
func letters(buf *[maxWords]byte, name string) []byte {
	n := 0
	for i := range len(name) {
		c := name[i]
		switch {
		case 'A' <= c && c <= 'Z':
			c |= 0x20
		case c == '_' || c == '-' || c == '.' || c == ' ' || c == '$':
			continue
		}
		if n == maxWords {
			return nil
		}
		buf[n] = c
		n++
	}
	return buf[:n]
}
