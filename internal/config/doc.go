// Package config reads the settings of the collector, the sink and the tool.
// A setting is one field of one struct; its flag, its environment variable, its
// key in a YAML file, its help text and its chapter in docs/settings.md all come
// from there. --x-y, SLUICE_X_Y and x-y (or x_y) name the same setting; the flag
// wins over the environment, the environment over the file, the file over the
// default.
//
// Tags of a setting, besides kong's own (name, default, group, help, enum):
//
//	unit    what the value is counted in; also the placeholder in the help
//	wrong   what happens when it is wrong or too small
//	secret  the value is never printed
//
// A flag with a "wrong" tag is a setting: it may come from the environment and
// the file. A flag without one, such as a verb's own --since, may not.
//
// Nothing here reads os.Args or os.Environ, prints anything but the help that
// was asked for, or ends the process.
package config
