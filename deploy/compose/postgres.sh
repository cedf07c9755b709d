#!/bin/bash
# One server of the demo's cluster; the first start makes it.
#
#   postgres.sh primary
#   postgres.sh standby-of HOST
set -euo pipefail
export PATH=/usr/lib/postgresql/15/bin:$PATH
data=/var/lib/postgresql/data/server

primary() {
	initdb --pgdata="$data.new" --username=postgres --auth-local=peer --auth-host=scram-sha-256 --encoding=UTF8 --locale=C >/dev/null
	cat >>"$data.new/postgresql.conf" <<-CONF
		listen_addresses = '*'
		password_encryption = 'scram-sha-256'
		wal_level = replica
	CONF
	cat >>"$data.new/pg_hba.conf" <<-HBA
		host all         all         all scram-sha-256
		host replication replication all scram-sha-256
	HBA
	# Nobody comes in by the network before the roles are there.
	pg_ctl --pgdata="$data.new" --wait --silent -o "-c listen_addresses=" start
	psql --quiet --username=postgres --file=/accounts/roles.sql postgres
	pg_ctl --pgdata="$data.new" --wait --silent stop
	mv "$data.new" "$data" # a start that was cut off begins anew
}

standby() {
	# libpq reads passwords from a file of this form, and from no other.
	(umask 077 && printf '%s:5432:*:replication:%s\n' "$1" "$(</accounts/replication)" >"$data.pass")
	pg_basebackup --pgdata="$data.new" --wal-method=stream --checkpoint=fast --write-recovery-conf \
		--dbname="host=$1 user=replication passfile=$data.pass application_name=$HOSTNAME"
	mv "$data.new" "$data"
}

if [ ! -d "$data" ]; then
	rm -rf "$data.new"
	case "$1" in
	primary) primary ;;
	standby-of) standby "$2" ;;
	esac
fi
exec postgres -D "$data"
