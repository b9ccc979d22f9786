#!/bin/sh
# Verifies a pack that `tracker audit export` wrote. Run it in the pack's folder:
#   sh verify.sh [--key-id ID] [--trusted FILE] [--reports] [--unsigned]
#   --key-id ID     the id of the signing key, from somebody other than the person who gave you the pack
#   --trusted FILE  checkpoints from outside, with empty lines between: the pack must have them (or know them as lost)
#   --reports       run checks.sql, beside this script: is each history possible, do the reports follow from it?
#   --unsigned      accept missing signatures
# Prints OK and what that means (exit status 0), or NOT OK for each finding (1). Exit status 2: the check could not run.
set -u
export LC_ALL=C
stop() { printf 'verify.sh: %s\n' "$*" >&2; exit 2; }
usage="usage: see the first lines of $0" tab=$(printf '\t') key_id='' trusted='' reports='' unsigned=''
while [ $# -gt 0 ]; do
    case $1 in
        --key-id) [ -n "${2:-}" ] || stop "$usage"; key_id=$2; shift ;;
        --trusted) [ -r "${2:-}" ] || stop "cannot read ${2:-the file after --trusted}"; trusted=$2; shift ;;
        --reports) reports=yes ;;
        --unsigned) unsigned=yes ;;
        *) stop "$usage" ;;
    esac
    shift
done
for tool in cat cmp dirname find mktemp rm sed sort uniq xargs sha256sum openssl ${reports:+sqlite3}; do
    command -v "$tool" >/dev/null || stop "this machine has no $tool"
done
case $(openssl version) in 'OpenSSL '[3-9].* | 'OpenSSL '[1-9][0-9].*) ;; *) stop 'OpenSSL 3 or newer is needed' ;; esac
case ${reports:+$(sqlite3 --version)} in [!3]* | 3.[0-9].* | 3.[0-3][0-9].*) stop 'sqlite3 is older than 3.40' ;; esac
checks=$(dirname "$0")/checks.sql
[ -z "$reports" ] || [ -r "$checks" ] || stop "--reports needs $checks, which is missing"
tmp=$(mktemp -d) || stop 'cannot make a temporary folder'
trap 'rm -rf "$tmp"' EXIT; trap 'exit 2' HUP INT TERM
# Pipes end in `| keep NAME || exit`: on a full disk cat fails; some versions of sort and sed do not.
keep() { cat >"$tmp/$1" || stop "cannot write to $tmp: is the disk full?"; }
found=0 but='' why=''
bad() { printf 'NOT OK: %s\n' "$*"; found=$((found + 1)); }
doubt() { but="$but, $1" why="$why$1: $2\n"; }
shown() { sed -e 's/[^ -~]/ /g' -e 's/^\(.\{150\}\).*/\1 .../' -e 's/^/    /' -e '20q'; } # 20 short lines of plain ASCII
# Are two sorted lists the same, and not empty? If not, say $3, and what only one of them has.
same() {
    if [ -s "$tmp/$1" ] && cmp -s "$tmp/$1" "$tmp/$2"; then return; fi
    bad "$3"
    sort "$tmp/$1" "$tmp/$2" | uniq -u | shown
}
# Print each checkpoint on a line of its own: tabs in place of line ends, and no empty lines.
flat() {
    { cat; printf '\ntracker checkpoint v2\n'; } |
        sed -n -e '/^$/d' -e "/^tracker checkpoint v2\$/{x;s/\\n/$tab/g;/./p;d;}" -e H
}
if [ -n "$trusted" ]; then
    flat <"$trusted" | sort -u | keep trusted || exit
    odd=$(sed -e "/^tracker checkpoint v2${tab}origin [0-9a-f]*${tab}number [0-9][ -~$tab]*\$/d" -e q "$tmp/trusted")
    [ -z "$odd" ] && [ -s "$tmp/trusted" ] || stop "$trusted: no checkpoints, or CR LF: $(printf %s "$odd" | shown)"
fi

# 1. The files are those that SHA256SUMS lists, and nothing else.
odd=$(find . ! -type f ! -type d -o -name '*[!A-Za-z0-9_.-]*' -o -type d ! -name . ! -path ./checkpoints \
    ! -path ./reports ! -path ./segments) || stop 'cannot list the files'
[ -z "$odd" ] || { bad 'links, folders or names that no pack has'; printf '%s\n' "$odd" | shown; }
[ -f SHA256SUMS ] && [ -d checkpoints ] || bad 'not a pack: SHA256SUMS or checkpoints/ is missing'
[ "$found" = 0 ] || exit 1
find . -type f ! -path ./SHA256SUMS ! -path ./SHA256SUMS.sig | sed 's/^..//' | sort | keep there || exit
sed -n 's/^[0-9a-f]\{64\}  //p' SHA256SUMS | sort | keep listed || exit
sha256sum -c SHA256SUMS 2>/dev/null | sed -n 's/: OK$//p' | sort | keep unchanged || exit
same there listed 'files that are in the folder or in SHA256SUMS, but not in both:'
same listed unchanged 'files that are not as in SHA256SUMS:'

# 2. The chain: a checkpoint names the one before and its segments by SHA-256. Only the last, the head, is not named.
find checkpoints -type f | sort | keep files || exit
head=$(sed -n '$p' "$tmp/files")
[ -n "$head" ] || { bad 'there is no checkpoint'; exit 1; }
xargs cat <"$tmp/files" | keep chain || exit
[ -z "$(sed -n '/[^ -~]/{p;q;}' "$tmp/chain")" ] || bad 'a checkpoint with tabs or other odd characters'
flat <"$tmp/chain" | keep flat || exit
form="${tab}number \\([0-9]*\\)${tab}sealed_at \\([0-9T:.-]*Z\\)${tab}ids transitions [0-9]* \\([0-9]*\\)"
form="$form${tab}ids gaps [0-9]* \\([0-9]*\\)${tab}ids sources [0-9]* \\([0-9]*\\)${tab}rows [0-9]*${tab}"
sed -n "s/^tracker checkpoint v2${tab}origin [0-9a-f]*$form.*/\\1,\\2,\\3,\\4,\\5/p" "$tmp/flat" | keep seals || exit
sed 's/,.*//' "$tmp/seals" | keep numbers || exit
sed 's/^checkpoints\/0*\(.*\)\.txt$/\1/' "$tmp/files" | keep names || exit
same names numbers 'checkpoints with a wrong number or form:'
{ sed -n 's/^sha256 //p' "$tmp/chain"; sed -n "\\|  $head\$|p" SHA256SUMS; } | sort | keep named || exit
sed -n -e '/  checkpoints\//p' -e '/  segments\//p' SHA256SUMS | sort | keep sealed || exit
same sealed named 'checkpoints or segments that are not as the chain names them:'
first=$(sed -n '1s/,.*//p' "$tmp/seals") number=$(sed -n '$s/,.*//p' "$tmp/seals") # the first is 1, or a base

# 3. The signatures of the head and of SHA256SUMS, by the key that the head names.
signed() { openssl pkeyutl -verify -pubin -inkey "$tmp/pem" -rawin -in "$1" -sigfile "$2" >/dev/null 2>&1; }
key=$(sed -n 's/^key [0-9a-f]\{32\} \(MCowBQYDK2VwAyEA[A-Za-z0-9+\/]\{43\}=\)$/\1/p' "$head") id=missing
if [ -n "$key" ]; then
    printf -- '-----BEGIN PUBLIC KEY-----\n%s\n-----END PUBLIC KEY-----\n' "$key" | keep pem || exit
    id=$(openssl pkey -pubin -in "$tmp/pem" -outform DER | sha256sum | sed 's/^\(.\{32\}\).*/\1/')
    sed '/^signature /d' "$head" | keep body || exit
    sed -n 's/^signature //p' "$head" | openssl base64 -d -A | keep signature || exit
    signed "$tmp/body" "$tmp/signature" || bad "$head: not signed by its key $id"
    cmp -s "$tmp/pem" public_key.pem || bad "public_key.pem: not the key $id of $head"
    [ ! -f SHA256SUMS.sig ] || signed SHA256SUMS SHA256SUMS.sig || bad 'SHA256SUMS.sig: not the signature of SHA256SUMS'
    [ -f SHA256SUMS.sig ] || [ -n "$unsigned" ] || bad 'SHA256SUMS.sig is missing (accepted with --unsigned)'
    [ -f SHA256SUMS.sig ] || doubt 'PACK NOT SIGNED' 'only checkpoints/ and segments/ are certain to be unchanged.'
    [ -n "$key_id" ] || doubt 'KEY NOT CHECKED' "anyone can make a key. Compare $id with the id that you were given."
else
    [ -n "$unsigned" ] || bad 'the last checkpoint is not signed (accepted with --unsigned)'
    [ -z "$(sed -n '/^key /p;/^signature /p' "$tmp/chain")" ] || bad 'the last checkpoint is not signed, but others are'
    doubt 'NOT SIGNED' 'anyone can make such a pack; only checkpoints from outside (--trusted) prove anything.'
fi
[ "${key_id:-$id}" = "$id" ] || bad "the key of the last checkpoint is $id, not $key_id"

# 4. Each checkpoint from outside is in the chain, or restored_after or a lost one names it, or it is older than a base.
if [ -n "$trusted" ]; then
    printf ' \t\tnumber %s\n' "$((first - 1))" | keep begin || exit # it sorts before the one that the base names
    sort -t "$tab" -k 3.8n "$tmp/begin" "$tmp/trusted" | sed -n '/^ /,$p' | keep held || exit
    sort "$tmp/flat" "$tmp/flat" "$tmp/held" | uniq -u | keep absent || exit
    sed "y/$tab/\n/" "$tmp/trusted" | cat - "$tmp/chain" | keep names || exit
    while IFS= read -r one; do
        sum=$(printf '%s\n' "$one" | sed "y/$tab/\n/" | sha256sum)
        [ -n "$(sed -n "/ ${sum%% *}/p" "$tmp/names")" ] || printf '%s\n' "$one"
    done <"$tmp/absent" | keep unnamed || exit
    same begin unnamed "checkpoints in $trusted that are not in this pack, which ends with $head:"
    lost=$(sed -n "s/.*${tab}number \([0-9]*\)${tab}.*/\1/p" "$tmp/absent" | sort -n | sed "/^$((first - 1))\$/d")
    set -- $(printf %s "$lost" | sed -n '1p;$p') # the first and the last number
    [ -n "$(sort "$tmp/flat" "$tmp/trusted" | uniq -d | sed 1q)" ] || trusted='' # none of these is in the chain
fi
[ -n "$trusted" ] || doubt 'NOTHING TRUSTED GIVEN' 'the end may be cut off, or someone with the key sealed all again.'
restored=$(sed -n '/^number /h;/^restored_after /{H;x;s/\n/: /;p;}' "$tmp/chain" | shown)
[ -z "$restored${1:-}" ] || doubt 'RESTORED AFTER A LOSS' "an older copy of the database was restored. Rows of lost
checkpoints${1:+ ($1 to $2 of the trusted)} may be missing, or were recorded again.${restored:+ These say so:\n$restored}"

# 5. Who answered. Over plain HTTP, or on the same machine, it may have been a simulator.
find segments -name '*-sources-*' | xargs cat | sed -En 's/^[0-9]+,"(([^"]|"")*)","(([^"]|"")*)",.*/\1 \3/p' |
    sort -u | keep sources || exit
here='//([^/]*@)?(127\.|0\.|\[[0:]*:|([^/:]*\.)?localhost\.?([:/]|$))'
small='y/ABCDEFGHIJKLMNOPQRSTUVWXYZ/abcdefghijklmnopqrstuvwxyz/'
[ -z "$(sed -En -e "$small" -e '/ https:..[^ ]*$/!p' -e "\\,$here,p" "$tmp/sources")" ] ||
    doubt 'A SIMULATOR MAY HAVE ANSWERED' 'a server that answered is on the same machine, or was asked over plain HTTP.'

# 6. checks.sql, on tables of the segments' rows: is each history possible, and do the reports follow from it?
if [ -z "$reports" ]; then
    doubt 'REPORTS NOT CHECKED' 'give --reports to compare reports/ with the segments and to check each history.'
elif [ "$found" = 0 ]; then
    { echo number,sealed_at,last_transition_id,last_gap_id,last_source_id; cat "$tmp/seals"; } | keep seals.csv || exit
    for table in transitions gaps sources; do # each row has a digit, a header has none: one header stays
        find segments -name "*-$table-*" | sort | xargs cat | sed -e 1p -e '/^[a-z_,]*$/d' | keep "$table.csv" || exit
    done
    error=$(for file in "$tmp"/*.csv zone.csv reports/report_*.csv; do
        name=${file##*/}
        [ ! -s "$file" ] || echo ".import --csv '$file' csv_${name%.csv}"
    done | cat - "$checks" | { sqlite3 -init /dev/null -batch -bail "$tmp/db" 2>&3 | keep checked; } 3>&1) || exit
    error=$(printf '%s\n' "$error" | shown)
    case $error in *' full'* | *'I/O error'* | *'out of memory'*) stop "sqlite3 cannot work in $tmp: $error" ;; esac
    sed -e 's/[^ -~]/ /g' -e 100q "$tmp/checked"
    case $(sed -n '$p' "$tmp/checked") in checked*) ;; *) bad "checks.sql does not fit this pack: $error" ;; esac
    [ -z "$(sed -n '/^NOT OK/{p;q;}' "$tmp/checked")" ] || exit 1
fi
[ "$found" = 0 ] || exit 1
sed -n "s/^base /Jobs removed with checkpoint $first; nothing before it was checked: /p" "$tmp/chain"
echo 'Who answered:' && shown <"$tmp/sources"
[ -z "$but" ] || but=", BUT${but#,}"
echo "OK$but: checkpoints $first to $number, key $id${trusted:+, with all in $trusted from $first on}"
echo "No row sealed up to checkpoint $number was changed, removed or added since it was sealed, as far as this key and
this checkpoint reach. It does not mean that each row was true when it was written: \`actor\` is self-asserted,
\`clusters\`, \`workers\` and \`alerts\` are not sealed."
printf '%b' "$why"
