#!/bin/sh
# Stands in for systemctl on a machine of the lab, whose first process is no systemd: it starts and stops what unit files
# say, enables them, and tells how they are, in systemctl's words. What units say beyond ExecStart is not kept.
set -eu
run=/run/units
mkdir -p $run

file() {
	for dir in /etc/systemd/system /lib/systemd/system; do
		if [ -e "$dir/$1" ]; then
			echo "$dir/$1"
			return 0
		fi
	done
	return 1
}
# The value of a key, without the prefixes of a command.
value() {
	sed -n "s/^$2=[-@:+!]*//p" "$(file "$1")" | head -n 1
}
masked() { [ "$(readlink -f "/etc/systemd/system/$1")" = /dev/null ]; }
pid() { cat "$run/$1" 2>/dev/null || echo 0; }
active() {
	pid=$(pid "$1")
	[ "$pid" != 0 ] && [ -d "/proc/$pid" ] && ! grep -q '^State:	Z' "/proc/$pid/status"
}
enabled() { ls /etc/systemd/system/*.wants/"$1" >/dev/null 2>&1; }
start() {
	active "$1" && return 0
	file "$1" >/dev/null || { echo "Unit $1 not found." >&2; return 5; }
	masked "$1" && { echo "Unit $1 is masked." >&2; return 1; }
	command=$(value "$1" ExecStart)
	# shellcheck disable=SC2016 # it is the new process's number
	setsid --fork sh -c 'echo $$ >"$1"; exec $2' sh "$run/$1" "$command" </dev/null >>"/var/log/$1.log" 2>&1
	# Started is what has its number.
	until [ -s "$run/$1" ]; do sleep 0.01; done
}
stop() {
	active "$1" || return 0
	pid=$(pid "$1")
	kill -s TERM "$pid"
	# TimeoutStopSec, in tenths of a second.
	left=450
	while active "$1" && [ $left -gt 0 ]; do
		sleep 0.1
		left=$((left - 1))
	done
	if active "$1"; then kill -s KILL "$pid"; fi
	rm -f "$run/$1"
}
show() {
	echo "Id=$1"
	if masked "$1"; then echo LoadState=masked; elif file "$1" >/dev/null; then echo LoadState=loaded; else echo LoadState=not-found; fi
	if active "$1"; then printf 'ActiveState=active\nSubState=running\n'; else printf 'ActiveState=inactive\nSubState=dead\n'; fi
	if enabled "$1"; then echo UnitFileState=enabled; else echo UnitFileState=disabled; fi
	echo "MainPID=$(pid "$1")"
	if active "$1"; then date -r "$run/$1" '+ExecMainStartTimestamp=%a %Y-%m-%d %H:%M:%S %Z'; fi
}
one() {
	case "$1" in
	start) start "$2" ;;
	stop) stop "$2" ;;
	restart | try-restart)
		[ "$1" = restart ] || active "$2" || return 0
		stop "$2"
		start "$2"
		;;
	show) show "$2" ;;
	is-active) if active "$2"; then echo active; else
		echo inactive
		return 3
	fi ;;
	is-enabled) if masked "$2"; then
		echo masked
		return 1
	elif enabled "$2"; then echo enabled; else
		echo disabled
		return 1
	fi ;;
	enable | preset)
		wants=/etc/systemd/system/$(value "$2" WantedBy).wants
		mkdir -p "$wants"
		ln -sf "$(file "$2")" "$wants/$2"
		;;
	disable) rm -f /etc/systemd/system/*.wants/"$2" ;;
	daemon-reload | list-units | list-unit-files) ;;
	*)
		echo "systemctl: $1 is not among what this stand-in does" >&2
		return 1
		;;
	esac
}

verb=
units=
for word in "$@"; do
	case "$word" in
	--version) echo 'systemd 252 (252)' && exit 0 ;;
	-*) ;;
	*) if [ -z "$verb" ]; then verb=$word; else
		case "$word" in *.*) units="$units $word" ;; *) units="$units $word.service" ;; esac
	fi ;;
	esac
done
[ -n "$units" ] || units=none
for unit in $units; do
	one "$verb" "$unit"
done
