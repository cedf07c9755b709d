#!/usr/bin/env bash
# Fails where a unit is not one, or where what it may do exceeds 2.0 of 10, as
# `systemd-analyze security` counts. It needs no running systemd. Prints the figures.
set -euo pipefail
cd "$(dirname "$0")"
analyze=$(../debian-for-tests.sh systemd-analyze)

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
units=$root/etc/systemd/system
mkdir -p "$units"
cp -r pawl-* "$units"
# verify wants the programs to be there, and the targets.
grep -h '^ExecStart=' pawl-*.service | sed 's/^ExecStart=\([^ ]*\).*/\1/' | while read -r program; do
	install -D -m 755 /dev/null "$root$program"
done
for target in network-online sysinit basic shutdown multi-user; do
	printf '[Unit]\nDescription=%s\n' "$target" >"$units/$target.target"
done

for unit in pawl-*.service; do
	said=$("$analyze" verify --root="$root" --man=no "$unit" 2>&1 | grep "$root" || :)
	[ -z "$said" ] || { echo "$said"; exit 1; }
	"$analyze" security --offline=true --root="$root" --no-pager --threshold=20 "$unit" >"$root/said" || { cat "$root/said"; exit 1; }
	tail -n 1 "$root/said"
done
