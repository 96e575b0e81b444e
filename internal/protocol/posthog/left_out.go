package posthog

import (
	"strings"

	"sluice/internal/protocol/wire"
)

// leftOut reports whether a property does not become an attribute: it repeats what
// is elsewhere, tells about the SDK, or is personal and was not asked for.
func leftOut(name string) bool {
	if !strings.HasPrefix(name, "$") {
		return name == "token" || name == "api_key" || wire.Contact(name)
	}
	switch name {
	// All flags at once, and what they carry.
	case "$active_feature_flags", "$feature_flag_payload", "$feature_flag_payloads", "$feature_flag_bootstrapped_payload",
		"$feature_flag_original_payload", "$feature_flag_details", "$enabled_feature_flags", "$override_feature_flags":
		return true
	// Properties of the person or group.
	case "$set", "$set_once", "$unset", "$group_set", "$stored_person_properties", "$stored_group_properties":
		return true
	// What was on the page, or typed.
	case "$elements", "$elements_chain", "$el_text", "$selected_content":
		return true
	// What went wrong, in words of the program.
	case "$exception_list", "$exception_values", "$exception_message", "$exception_stack_trace_raw", "$exception_sources",
		"$exception_functions", "$exception_personURL", "$exception_steps":
		return true
	// Settings and state of the SDK.
	case "$token", "$config_defaults", "$configured_session_timeout_ms", "$initialization_time", "$recording_status",
		"$process_person_profile", "$is_identified", "$had_persisted_distinct_id", "$console_log_recording_enabled_server_side",
		"$autocapture_disabled_server_side", "$web_vitals_enabled_server_side", "$exception_capture_enabled_server_side",
		"$dead_clicks_enabled_server_side", "$sent_at", "$timestamp", "$cookieless_mode":
		return true
	}
	for _, p := range [...]string{
		"$feature/", "$lib", "$geoip", "$sdk_", "$initial_", "$session_entry_", "$session_recording", "$replay_",
		"$ai_input", "$ai_output",
	} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return wire.Contact(name)
}
