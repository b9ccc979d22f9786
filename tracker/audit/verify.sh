#!/bin/sh
# Verify a pack that `tracker audit export` wrote: sh, awk, sha256sum, sort, find, xargs and openssl 3 are all it needs.
#
#   sh verify.sh [--key-id ID] [--trusted FILE] [--all] [DIR]
#
# It trusts nothing in the pack. In this order it checks
#   1. that the files are those that SHA256SUMS lists, with the SHA-256 listed there, and the signature of that list;
#   2. each checkpoint: its form, its number, the SHA-256 of the one before, id ranges without a hole, the sum of its
#      rows, who signed it and which key comes next, and the signatures;
#   3. each segment of the pack's clusters and range: there, and with the SHA-256 and the rows of its checkpoint; and
#      each line of it: its form, the order of its id, and no hole in the numbers of a job's transitions;
#   4. that jobs.csv, transitions.csv, durations.csv, deadlines.csv and gaps.csv are what the segments say: they are
#      computed anew from the segments and compared byte by byte;
#   5. timezone.csv, by which the months were counted, against this machine's own zone data;
#   6. that a checkpoint you kept (--trusted) is in the chain.
# Each finding is one line that names the file and line, or the segment. What follows from one finding is not told again.
# Exit status: 0 OK, 1 findings, 2 it could not work.

set -u
LC_ALL=C
export LC_ALL
umask 077
unset CDPATH

usage() {
    cat <<'END'
usage: sh verify.sh [--key-id ID] [--trusted FILE] [--all] [DIR]

  DIR             the pack; default: the folder that this file is in
  --key-id ID     the id of the signing key, got from someone other than whoever gave you the pack
  --trusted FILE  checkpoints kept outside (one or many, an empty line between two): each must be in the pack's chain
  --all           check the signature of each checkpoint, not only of each key's last (the chain covers the others)
  --help          this

Prints one line a finding, then OK (exit status 0) or NOT OK (1). Exit status 2: it could not work.
END
}

stop() {
    printf 'verify.sh: %s\n' "$*" >&2
    exit 2
}

key_id='' trusted='' all='' pack=''
while [ $# -gt 0 ]; do
    case $1 in
        --key-id | --trusted)
            [ -n "${2-}" ] || stop "$1 needs a value; see --help"
            if [ "$1" = --key-id ]; then key_id=$2; else trusted=$2; fi
            shift
            ;;
        --key-id=?*) key_id=${1#*=} ;;
        --trusted=?*) trusted=${1#*=} ;;
        --key-id= | --trusted=) stop "${1%=} needs a value; see --help" ;;
        --all) all=1 ;;
        -h | --help)
            usage
            exit 0
            ;;
        -*) stop "there is no option $1; see --help" ;;
        *)
            [ -z "$pack" ] || stop "one folder at a time; see --help"
            pack=$1
            ;;
    esac
    shift
done
for tool in awk sha256sum sort find xargs wc mktemp dirname rm cat; do
    command -v "$tool" >/dev/null 2>&1 || stop "this machine has no $tool"
done
if [ -n "$trusted" ]; then
    [ -f "$trusted" ] && [ -r "$trusted" ] || stop "cannot read $trusted"
    case $trusted in /*) ;; *) trusted=$PWD/$trusted ;; esac
fi
[ -n "$pack" ] || pack=$(dirname -- "$0")
case $pack in -*) pack=./$pack ;; esac
cd "$pack" || stop "cannot open the folder $pack"
[ -f SHA256SUMS ] || stop "there is no SHA256SUMS in $pack: it is no pack, or one whose export did not end"
tmp=$(mktemp -d) || stop "cannot make a temporary folder"
trap 'rm -rf "$tmp"' EXIT
trap 'exit 2' HUP INT TERM
export tmp trusted
tab=$(printf '\t')
line_end='
'
found='' notes=''

# A disk that is full must not hide a finding, nor shorten what is compared; and busybox awk and sort say nothing of it.
# So that there are findings is kept here, and of each file in the temporary folder it is known how long it must be.
cannot_write() { stop "cannot write to $tmp: is there room?"; }
size() { wc -c <"$tmp/$1"; }
for file in findings names sums changed segments keys signatures last_key signers sources skipped counts counted; do
    printf '' >"$tmp/$file" || cannot_write
done
finding() { # FILE WHAT
    found=1
    printf '%s\t%s\n' "$1" "$2" >>"$tmp/findings" || cannot_write
}
is_told() { # FILE
    while IFS= read -r line; do case $line in "$1$tab"*) return 0 ;; esac done <"$tmp/findings"
    return 1
}
note() { notes="${notes}note: $*$line_end"; }
can_write() { printf 'whole\n' >"$tmp/probe" && [ "$(cat "$tmp/probe")" = whole ] || cannot_write; }
not_ok() {
    can_write  # else openssl may have found what is not so
    awk '{ sub(/\t/, ": "); print }' "$tmp/findings"
    count=$(wc -l <"$tmp/findings")
    if [ "$count" -eq 1 ]; then echo "NOT OK: 1 finding"; else echo "NOT OK: $((count)) findings"; fi
    exit 1
}
# Run an awk program, which ends with over(): then what it wrote must be there to the last byte.
run() { # INPUT ARGUMENT...: INPUT is a command whose output it reads
    input=$1
    shift
    had=$(size findings)
    written=$("$input" | awk -v tmp="$tmp" "$@")
    case $? in
        0) ;;
        3) found=1 ;;
        *) stop "awk failed" ;;
    esac
    printf '%s\n' "$written" | while read -r bytes name; do
        [ "$name" != findings ] || bytes=$((bytes + had))
        [ -z "$name" ] || [ "$(size "$name")" -eq "$bytes" ] || exit 1
    done || cannot_write
}
nothing() { :; }

# Common to the awk programs: findings and what else they write, text that is safe on a terminal, and a strict reading
# of hexadecimal digits.
common='
function put(file, line) {
    print line >> (tmp "/" file)
    written[file] += length(line) + 1
}
function finding(file, what) {
    put("findings", file "\t" what)
    told[file] = 1
    findings++
}
function load_told(    line) {  # what was found before: first of all, for it is in the file that finding() writes to
    while ((getline line < (tmp "/findings")) > 0) told[substr(line, 1, index(line, "\t") - 1)] = 1
    close(tmp "/findings")
}
function over(    file) {
    for (file in written) print written[file], file
    exit findings ? 3 : 0
}
function replaced(v, lead, least, most,    out, at, c) {  # two or three bytes of UTF-8 that begin with lead
    out = ""
    while ((at = index(v, lead)) > 0) {
        c = substr(v, at + length(lead), 1)
        if (c >= least && c <= most) {
            out = out substr(v, 1, at - 1) "\357\277\275"
            v = substr(v, at + length(lead) + 1)
        } else {
            out = out substr(v, 1, at + length(lead) - 1)
            v = substr(v, at + length(lead))
        }
    }
    return out v
}
function clean(v) {  # control characters that drive a terminal or turn text around become U+FFFD
    gsub(/[\001-\010\013-\037\177]/, "\357\277\275", v)
    if (index(v, "\302")) v = replaced(v, "\302", "\200", "\237")
    if (index(v, "\342\200")) {
        v = replaced(v, "\342\200", "\216", "\217")
        v = replaced(v, "\342\200", "\250", "\256")
    }
    if (index(v, "\342\201")) v = replaced(v, "\342\201", "\246", "\251")
    return v
}
function shown(v) {
    v = clean(v)
    gsub(/[\t\n]/, " ", v)
    return length(v) > 300 ? substr(v, 1, 300) "..." : v
}
function is_sha256(v) { return length(v) == 64 && v !~ /[^0-9a-f]/ }
function is_number(v) { return v ~ /^(0|[1-9][0-9]*)$/ && length(v) < 17 }
function load_sums(    line, name) {
    while ((getline line < (tmp "/sums")) > 0) {
        name = substr(line, 66)
        name = substr(name, index(name, " ") + 1)
        sum[name] = substr(line, 1, 64)
        size[name] = substr(line, 66, length(line) - length(name) - 66)
    }
    while ((getline line < (tmp "/changed")) > 0) changed[line] = 1
}
'

# -- 1. The files ------------------------------------------------------------------------------------------------

# What is no file leads elsewhere, or never ends when it is read; a name of two lines passes for two others. So with
# either of them nothing else is looked at.
two_lines=$(find . -name "*$line_end*") && links=$(find . ! -type d ! -type f) && files=$(find . ! -type d | sort) &&
    folders=$(find . -type d | sort) || stop "cannot list all of the pack"
if [ -n "$two_lines" ]; then
    finding . "a name with a line end in it, as no pack has: nothing else was checked"
    not_ok
fi
if [ -n "$links" ]; then
    print_links() { printf '%s\n' "$links" | sort; }
    run print_links "$common"'
    { finding(shown(substr($0, 3)), "a link or a device, not a file: nothing else was checked") }
    END { over() }'
    not_ok
fi
print_listing() { printf '%s\n\n%s\n' "$folders" "$files"; }
run print_listing "$common"'
function its_folder(path) {
    sub(/\/[^\/]*$/, "", path)
    return path
}
BEGIN {
    while ((getline line) > 0 && line != "") {
        folder[++folders] = line
        is_full[its_folder(line)] = 1
    }
    before = ""
    while ((getline line < "SHA256SUMS") > 0) {
        number++
        name = substr(line, 67)
        if (!is_sha256(substr(line, 1, 64)) || substr(line, 65, 2) != "  " || name !~ /^[A-Za-z0-9_.~%\/-]+$/ \
            || name ~ /^[\/-]/ || name ~ /(^|\/)\.\.?(\/|$)/ || name ~ /\/\//)
            bad = "not `SHA-256  name`"
        else if ((name "") <= (before ""))
            bad = "double or out of order"
        if (bad) break
        listed[name] = substr(line, 1, 64)
        order[++names] = name
        before = name
    }
    if (bad || !number) {  # then nobody knows what belongs to the pack
        finding("SHA256SUMS", (bad ? "line " number ": " bad : "there is no line in it") ": nothing else was checked")
        over()
    }
    while ((getline line) > 0) {
        is_full[its_folder(line)] = 1
        name = substr(line, 3)
        if (name == "SHA256SUMS" || name == "SHA256SUMS.sig") continue
        if (name in listed) there[name] = 1
        else {
            finding(shown(name), "not listed in SHA256SUMS: it was added to the pack")
            unlisted[name] = 1
        }
    }
    for (i = 1; i <= folders; i++)
        if (!(folder[i] in is_full) && folder[i] !~ /^\.(\/checkpoints|\/segments)?$/)
            finding(shown(substr(folder[i], 3)), "an empty folder: it was added to the pack")
    for (i = 1; i <= names; i++) {
        name = order[i]
        if (name in there) put("names", "./" name)
        else finding(name, "missing")
    }
    n = split("README.txt about.txt deadlines.csv durations.csv gaps.csv jobs.csv report.html timezone.csv " \
        "transitions.csv verify.sh checkpoints/000001.txt", needed, " ")
    for (i = 1; i <= n; i++) {
        belongs[needed[i]] = 1
        if (!(needed[i] in listed) && !(needed[i] in unlisted)) finding(needed[i], "missing, and not listed in SHA256SUMS")
    }
    for (i = 1; i <= names; i++)
        if (!(order[i] in belongs) && order[i] != "public_key.pem" && order[i] !~ /^(checkpoints|segments)\//)
            finding(order[i], "no file of a pack: it was added, and to SHA256SUMS too")
    over()
}'
! is_told SHA256SUMS || not_ok
# One process for many files; a file that cannot be read has no sum, and is told below.
print_sums() {
    xargs wc -c <"$tmp/names" 2>/dev/null
    xargs sha256sum <"$tmp/names" 2>/dev/null
}
run print_sums "$common"'
function name_of(line) { return substr(line, index(line, " ./") + 3) }
index($0, " ./") == 66 {
    name = name_of($0)
    sum[name] = substr($0, 1, 64)
    put("sums", sum[name] " " size[name] " " name)
}
index($0, " ./") != 66 { size[name_of($0)] = $1 }
END {
    load_told()
    while ((getline line < "SHA256SUMS") > 0) {
        name = substr(line, 67)
        if (!(name in told) && sum[name] != substr(line, 1, 64)) put("changed", name)
    }
    over()
}'

# -- 2. The checkpoints ------------------------------------------------------------------------------------------

# Also about.txt, which says what the pack is about: it is believed only where the checkpoints bear it out.
run nothing -v all="$all" "$common"'
function bad(what) {  # one finding a checkpoint: what else is wrong with it follows, as a rule
    if (!(number in wrong)) finding(file, what)
    wrong[number] = 1
}
function next_line() {
    at++
    if ((getline line < file) <= 0) line = ""
    else bytes += length(line) + 1
    return line
}
function word(name,    v) {  # the value of the line that must come next
    next_line()
    if (index(line, name " ") != 1) {
        bad("line " at ": should be `" name " ...`")
        return ""
    }
    v = substr(line, length(name) + 2)
    return v
}
function range(name, before,    v, p) {
    v = word(name)
    if (split(v, p, " ") != 2 || !is_number(p[1]) || !is_number(p[2]) || p[1] + 0 > p[2] + 0 || v != p[1] " " p[2]) {
        bad("line " at ": should be `" name " AFTER UPTO`")
        low = before; high = before
        return
    }
    if (p[1] + 0 != before + 0 && !((number - 1) in wrong))
        bad("line " at ": begins after " name " id " p[1] ", but the checkpoint before ends with " before)
    low = p[1] + 0; high = p[2] + 0
}
function within(v, low, high, least,    p) {  # first-last, or -: returns the last id, -1 if it cannot be
    if (v == "-") return least
    if (split(v, p, "-") != 2 || !is_number(p[1]) || !is_number(p[2]) || p[1] + 0 > p[2] + 0) return -1
    if (p[1] + 0 <= low || p[2] + 0 > high || p[1] + 0 <= least) return -1
    return p[2] + 0
}
function key(name, v,    p) {  # ID BASE64 of an Ed25519 key, whose DER always begins alike
    if (split(v, p, " ") != 2 || length(p[1]) != 32 || p[1] ~ /[^0-9a-f]/ || length(p[2]) != 60 \
        || index(p[2], "MCowBQYDK2VwAyEA") != 1 || p[2] ~ /[^A-Za-z0-9+\/=]/ || v != p[1] " " p[2]) {
        bad("line " at ": should be `" name " ID KEY`, an Ed25519 key")
        return ""
    }
    keys[p[1]] = p[2]
    return p[1]
}
function unquote(v,    out, at, high, low) {  # %41 is A
    while ((at = index(v, "%")) > 0) {
        high = index("0123456789ABCDEF", substr(v, at + 1, 1)) - 1
        low = index("0123456789ABCDEF", substr(v, at + 2, 1)) - 1
        if (length(v) < at + 2 || high < 2 || low < 0) return ""  # not one, or a control character
        out = out substr(v, 1, at - 1) sprintf("%c", high * 16 + low)
        v = substr(v, at + 3)
    }
    return out v
}
function segment_line(    n, p, cluster, part, path) {
    n = split(line, p, " ")
    cluster = unquote(p[3])
    part = p[2]
    if (n != 11 || part != parts + 1 || cluster == "" || p[3] ~ /[^A-Za-z0-9_.~%-]/ || !is_number(p[n - 7]) || p[n - 7] < 1 || p[n - 7] > 1000 || !is_sha256(p[n - 6]) \
        || p[n - 5] != "sources" || p[n - 3] != "gaps" || p[n - 1] != "transitions") {
        bad("line " at ": should be `segment PART CLUSTER ROWS SHA-256 sources ... gaps ... transitions ...`")
        return
    }
    parts++
    if ((cluster "") < (its_cluster "")) bad("line " at ": the clusters are out of order")
    if ((cluster "") != (its_cluster "")) { s_last = s_low; g_last = g_low; t_last = t_low }
    its_cluster = cluster
    s_last = within(p[n - 4], s_low, s_high, s_last)
    g_last = within(p[n - 2], g_low, g_high, g_last)
    t_last = within(p[n], t_low, t_high, t_last)
    if (s_last < 0 || g_last < 0 || t_last < 0) bad("line " at ": ids that this checkpoint does not have, or twice")
    rows += p[n - 7]
    path = sprintf("segments/%06d-%04d-%s.txt", number, part, substr(p[3], 1, 100))
    segments++
    s_text[segments] = cluster "\t" number "\t" part "\t" p[n - 7] "\t" p[n - 6] "\t" path "\t" p[n - 4] "\t" p[n - 2] \
        "\t" p[n]
    s_number[segments] = number
    s_cluster[segments] = cluster
    s_path[segments] = path
    clusters[cluster] = 1
}
function checkpoint(    v, p, sha, at_text) {
    at = 0; bytes = 0; parts = 0; rows = 0; its_cluster = ""; its_key = ""; named = ""
    if (next_line() != "tracker checkpoint v1") { bad("line 1: should be `tracker checkpoint v1`"); return }
    v = word("origin")
    if (length(v) != 32 || v ~ /[^0-9a-f]/) bad("line " at ": not 32 hexadecimal digits")
    if (origin == "" && !(number in wrong)) origin = v
    else if (v != origin) bad("line " at ": origin " shown(v) ", but the first checkpoint has " origin)
    v = word("number")
    if (v "" != number "") bad("line " at ": number " shown(v) " in the file of number " number)
    v = word("previous")
    if (number == 1) {
        if (v != "-") bad("line " at ": the first checkpoint follows on none: should be `previous -`")
    } else if (v != sum[before] && (before in changed) && !((number - 1) in wrong)) {
        finding(before, "not the text that checkpoint " number " follows on (its SHA-256 is " sum[before] ")")
        wrong[number - 1] = 1
    } else if (v != sum[before] && !((number - 1) in wrong))
        bad("line " at ": previous is not the SHA-256 of " before ", which is " sum[before])
    v = word("sealed_at")
    if (split(v, p, " ") != 2 || !is_number(p[1]) || p[2] != instant(p[1])) bad("line " at ": not one instant, twice")
    sealed_at = p[1]
    range("transitions", t_high); t_low = low; t_high = high
    range("gaps", g_high); g_low = low; g_high = high
    range("sources", s_high); s_low = low; s_high = high
    v = word("rows")
    if (!is_number(v)) bad("line " at ": not a number")
    said = v
    next_line()
    while (index(line, "segment ") == 1) { segment_line(); next_line() }
    if (rows != said) bad("line 9: says " shown(said) " rows, but its segments have " rows)
    if (index(line, "key ") == 1) { its_key = key("key", substr(line, 5)); next_line() }
    if (index(line, "next_key ") == 1) { named = key("next_key", substr(line, 10)); next_line() }
    if (its_key != "") {
        if (index(line, "signature ") != 1 || length(line) != 98 || substr(line, 11) !~ /^[A-Za-z0-9+\/]+[AQgw]==$/)
            bad("line " at ": should be `signature BASE64`, of 64 bytes")
        else { signature[number] = substr(line, 11); next_line() }
        last_of[its_key] = number
        by[number] = its_key
    }
    if (line != "" || bytes != size[file]) bad("line " at ": more than belongs into a checkpoint, or less")
    if (its_key == "" && last_key != "") bad("not signed, but the checkpoint before is")
    if (its_key != "" && right_key != "" && its_key != right_key)
        bad("signed by key " its_key ", but the checkpoint before says that " right_key " is right")
    if (its_key != "" && last_key == "" ) first_signed = number
    if (its_key != "" && its_key != last_key) signers = signers (signers == "" ? "" : ", then ") its_key
    last_key = its_key
    right_key = named != "" ? named : its_key
}
function instant(v,    s, day, z, era, doe, yoe, y, doy, mp, d, m, rest) {
    s = int(v / 1000000)
    day = int(s / 86400); rest = s - day * 86400
    z = day + 719468; era = int(z / 146097); doe = z - era * 146097
    yoe = int((doe - int(doe / 1460) + int(doe / 36524) - int(doe / 146096)) / 365)
    y = yoe + era * 400; doy = doe - (365 * yoe + int(yoe / 4) - int(yoe / 100)); mp = int((5 * doy + 2) / 153)
    d = doy - int((153 * mp + 2) / 5) + 1; m = mp < 10 ? mp + 3 : mp - 9; if (m <= 2) y++
    return sprintf("%04d-%02d-%02dT%02d:%02d:%02d.%06dZ", y, m, d, int(rest / 3600), int(rest / 60) % 60, rest % 60,
        v - s * 1000000)
}
function read_about(    v, name, names) {
    names = " format tracker origin last_checkpoint last_checkpoint_sha256 as_of timezone first_checkpoint clusters" \
        " segments transitions transitions_of_jobs_begun_earlier jobs key signature cluster "
    at = bytes = 0
    while ((getline line < "about.txt") > 0) {
        at++
        bytes += length(line) + 1
        name = substr(line, 1, index(line, ": ") - 1)
        v = substr(line, index(line, ": ") + 2)
        if (name == "" || name ~ / / || !index(names, " " name " ") || (name == "cluster" ? (v in chosen) : (name in about)))
            about_wrong("line " at ": no fact about a pack, or twice: " shown(line))
        else if (name == "cluster") { chosen[v] = 1; choice = choice " " shown(v) }
        else about[name] = v
    }
    if (bytes != size["about.txt"]) about_wrong("its end: not whole lines of text")
    claims("format", "tracker pack v1")
}
function about_wrong(what) {
    if (("about.txt" in sum) && !("about.txt" in about_told)) finding("about.txt", what)
    about_told["about.txt"] = 1
}
function claims(name, right) {
    if (about[name] "" != right "")
        about_wrong(name " is `" shown(about[name]) "`, but " (name == "format" ? "should be" : "the checkpoints say") \
            " `" right "`")
}
function signed_part(n,    file, line) {  # what was signed: all but the last line
    file = sprintf("checkpoints/%06d.txt", n)
    close(file)
    while ((getline line < file) > 0) if (index(line, "signature ") != 1) put("body." n, line)
    close(file)
    close(tmp "/body." n)
    put("signatures", n " " by[n] " " signature[n])
}
function compare(    block, n, given, file, line, i, p, count, same, later, least, most) {
    # A trusted file: checkpoints with an empty line between two. What is no checkpoint is told.
    while (1) {
        more = (getline line < trusted) > 0
        sub(/\r$/, "", line)
        if (more && line != "") { block = block line "\n"; continue }
        if (block != "") {
            blocks++
            count = split(block, p, "\n") - 1
            if (p[1] != "tracker checkpoint v1" || index(p[3], "number ") != 1 || !is_number(n = substr(p[3], 8)))
                finding(trusted, "its text number " blocks " is no checkpoint")
            else if (n + 0 > last) {
                if (!later++ || n + 0 < least + 0) least = n
                if (n + 0 > most + 0) most = n
            } else {
                file = sprintf("checkpoints/%06d.txt", n)
                close(file)
                same = 1
                for (i = 1; i <= count; i++) if ((getline given < file) <= 0 || given "" != p[i] "") { same = 0; break }
                if (same && (getline given < file) > 0) same = 0
                close(file)
                if (!same && !((n + 0) in wrong)) finding(file, "not the checkpoint " n " of " trusted)
            }
            block = ""
        }
        if (!more) break
    }
    if (later) finding(trusted, (later == 1 ? "checkpoint " least " is" : "checkpoints " least " to " most " are") \
        " not in the pack, which ends with " last ": the tail was cut off, or the pack was made before (ask for a newer pack)")
    if (!blocks) finding(trusted, "there is no checkpoint in it")
}
BEGIN {
    load_told()
    load_sums()
    trusted = ENVIRON["trusted"]  # -v would read backslashes in it
    read_about()
    t_high = g_high = s_high = 0
    for (number = 1; (file = sprintf("checkpoints/%06d.txt", number)) in sum; number++) {
        checkpoint()
        close(file)
        before = file
        last = number
    }
    for (file in sum) if (file ~ /^checkpoints\//) {
        number = file
        sub(/^checkpoints\/0*/, "", number); sub(/\.txt$/, "", number)
        if (!is_number(number) || number + 0 < 1 || file != sprintf("checkpoints/%06d.txt", number)) nameless[++n_nameless] = file
        else if (number + 0 > last) later = 1
    }
    for (i = 1; i <= n_nameless; i++) finding(nameless[i], "no checkpoint of a pack")
    file = sprintf("checkpoints/%06d.txt", last + 1)
    is_cut = later || (file in told)
    if (later && !(file in told)) finding(file, "missing: there are later ones")
    if (last && !(last in wrong) && (before in changed))
        { finding(before, "changed since the pack was made: not the SHA-256 in SHA256SUMS"); wrong[last] = 1 }
    first = about["first_checkpoint"]
    if (is_cut || ("about.txt" in about_told)) first = is_number(first) && first > 0 ? first : 1
    else if (!is_number(first) || first < 1 || first > last) { about_wrong("first_checkpoint is none of the chain"); first = 1 }
    if (last && !(last in wrong) && !is_cut) {
        claims("origin", origin)
        claims("last_checkpoint", last)
        claims("last_checkpoint_sha256", sum[before])
        as_of = instant(sealed_at); sub(/Z$/, "+00:00", as_of)
        claims("as_of", as_of)
        claims("key", last_key == "" ? "none" : last_key)
        for (name in chosen) if (about["clusters"] == "all" || !(name in clusters))
            about_wrong("cluster " shown(name) ": no checkpoint has it, or all are chosen")
    }
    if (about["clusters"] != "all" && about["clusters"] != "chosen") {
        about_wrong("clusters is neither all nor chosen")
        about["clusters"] = "all"
    }
    for (i = 1; i <= segments; i++) {
        expected = s_number[i] >= first && (about["clusters"] == "all" || (s_cluster[i] in chosen))
        known[s_path[i]] = 1
        if (expected && !(s_number[i] in wrong)) put("segments", s_text[i])
        else if (!expected && (s_path[i] in sum)) finding(s_path[i], "not of the clusters and range that about.txt names")
    }
    for (path in sum) if (path ~ /^segments\// && !(path in known) && !findings && !is_cut) stray[++n_stray] = path
    for (i = 1; i <= n_stray; i++) finding(stray[i], "a segment that no checkpoint has")
    for (id in keys) put("keys", id " " keys[id])
    # A signature covers all that went before: each checkpoint holds the SHA-256 of the one before it. So the last
    # signature of each key says as much as all of them, unless SHA-256 fails.
    for (number = 1; number <= last; number++) if ((number in by) && !(number in wrong) && (number in signature) \
        && (all || last_of[by[number]] == number)) signed_part(number)
    if (trusted != "" && last) compare()
    put("chain", last + 0 "\n" sealed_at "\n" last_key "\n" first "\n" about["timezone"] "\n" about["signature"] "\n" \
        signers "\n" first_signed + 0 "\n" (about["clusters"] == "all" ? "all clusters" : "only" choice) "\n" as_of)
    if (last_key != "") put("last_key", keys[last_key])
    for (number = 1; number <= last; number++) if (number in by) for (id in last_of) if (id == by[number]) its[id] = 1
    for (id in its) put("signers", id)
    over()
}'
{
    read -r last
    read -r sealed_at
    read -r last_key
    read -r first
    read -r zone
    read -r signature
    read -r signers
    read -r first_signed
    read -r scope
    read -r as_of
} <"$tmp/chain"

# The signatures, by openssl. A key's id is the beginning of the SHA-256 of its DER.
genuine() { openssl pkeyutl -verify -pubin -inkey "$1" -rawin -in "$2" -sigfile "$3" >/dev/null 2>&1; }
can_sign=1
if [ -s "$tmp/keys" ] || [ -f SHA256SUMS.sig ]; then  # else there is nothing to check with it
    case $(openssl version 2>/dev/null) in
        'OpenSSL '[3-9]*) ;;
        *)
            can_sign=''
            finding "openssl" "this machine has no OpenSSL 3: no signature was checked"
            ;;
    esac
fi
if [ "$can_sign" ]; then
    while read -r id der; do
        case $(printf '%s' "$der" | openssl base64 -d -A 2>/dev/null | sha256sum) in
            "$id"*) ;;
            *) finding "checkpoints" "key $id: its id is not the beginning of its SHA-256" ;;
        esac
        printf -- '-----BEGIN PUBLIC KEY-----\n%s\n-----END PUBLIC KEY-----\n' "$der" >"$tmp/$id.pem" || cannot_write
    done <"$tmp/keys"
    while read -r number id said; do
        printf '%s' "$said" | openssl base64 -d -A >"$tmp/sig" 2>/dev/null && [ "$(size sig)" -eq 64 ] || cannot_write
        genuine "$tmp/$id.pem" "$tmp/body.$number" "$tmp/sig" ||
            finding "$(printf 'checkpoints/%06d.txt' "$number")" "its signature is not by key $id"
    done <"$tmp/signatures"
    if [ -s "$tmp/last_key" ]; then
        if [ ! -f public_key.pem ]; then
            is_told public_key.pem || finding public_key.pem "missing: checkpoint $last is signed"
        elif [ "$(cat public_key.pem)" != "$(cat "$tmp/$last_key.pem")" ]; then
            finding public_key.pem "not the key $last_key of checkpoint $last"
        fi
        if [ -f SHA256SUMS.sig ]; then
            genuine "$tmp/$last_key.pem" SHA256SUMS SHA256SUMS.sig ||
                finding SHA256SUMS "changed since the pack was made: SHA256SUMS.sig is not key $last_key's signature of it"
        elif [ "$signature" != none ]; then
            finding SHA256SUMS.sig "missing: about.txt says that the pack is signed"
        else
            note "the pack as a whole is not signed, though its checkpoints are: report.html and README.txt are as" \
                "whoever gave you the pack wants them. The segments and the five CSV files are checked all the same."
        fi
    elif [ -f public_key.pem ]; then
        finding public_key.pem "the last checkpoint is not signed, so this key signed nothing here"
    elif [ -f SHA256SUMS.sig ]; then
        finding SHA256SUMS.sig "the last checkpoint is not signed, so nobody knows whose signature this is"
    fi
fi
if [ ! -s "$tmp/last_key" ]; then
    note "the checkpoints are not signed: whoever gave you the pack could have made all of it anew. A checkpoint from" \
        "elsewhere (--trusted) shows that it was not, up to that checkpoint."
elif [ "$first_signed" -gt 1 ] && [ "$last" -ge "$first_signed" ]; then
    note "checkpoints before number $first_signed are not signed; the chain covers them from there on."
fi
if [ -n "$key_id" ]; then
    has_signed=''
    while read -r id; do [ "$id" = "$key_id" ] && has_signed=1; done <"$tmp/signers"
    if [ -z "$has_signed" ]; then
        finding "checkpoints" "none is signed by key $key_id, which you asked for${signers:+; they are signed by $signers}"
    elif [ "$last_key" != "$key_id" ]; then
        note "key $key_id, which you asked for, has named its successor; the last checkpoint is signed by key $last_key."
    fi
elif [ -s "$tmp/last_key" ]; then
    note "signed by key $signers. Compare that id with one from someone other than whoever gave you the pack (--key-id)."
fi
if [ -z "$trusted" ]; then
    note "that nothing was cut off after checkpoint $last only a later checkpoint from elsewhere can show (--trusted)."
fi

# -- 3 and 4. The segments, and the CSV files that follow from them ----------------------------------------------

# Cluster by cluster (in the order of code points, which is that of bytes), each cluster's segments as they were sealed:
# so its ids ascend, and a job's transitions come in their order.
sort -t "$tab" -k1,1 -k2,2n -k3,3n "$tmp/segments" >"$tmp/sorted" && [ "$(size sorted)" -eq "$(size segments)" ] || cannot_write
run nothing -v first="$first" -v as_of="$sealed_at" "$common"'
# Text of a CSV cell: what tracker writes, so that no spreadsheet takes it for a formula.
function cell(v,    c) {
    if (v == "\\N" || v == "") return ""
    if (v !~ /[^A-Za-z0-9 ._:;()-]/ && v !~ /^-/) return v
    v = plain(v)
    if (v ~ /[^\n -~]/) v = clean(v)
    c = substr(v, 1, 1)
    if (c == "=" || c == "+" || c == "-" || c == "@" || c == "\t" || c == "\n") v = "\047" v
    else if (c == "\357") {
        c = substr(v, 1, 3)
        if (c == "\357\274\235" || c == "\357\274\213" || c == "\357\274\215" || c == "\357\274\240") v = "\047" v
    }
    if (v ~ /[,"\n]/) {
        gsub(/"/, "\"\"", v)
        v = "\"" v "\""
    }
    return v
}
# Fields as they are kept: \\ as \377 and \| as \376, which UTF-8 does not have.
function plain(v) {
    if (index(v, "\\")) {
        gsub(/\\n/, "\n", v)
        gsub(/\\r/, "\r", v)
    }
    if (index(v, "\376")) gsub("\376", "|", v)
    if (index(v, "\377")) gsub("\377", "\\", v)
    return v
}
function escaped(v) {
    gsub(/\\/, "\377", v)
    return v
}
function split_line(line) {
    if (index(line, "\\\\") || index(line, "\\|")) {
        gsub(/\\\\/, "\377", line)
        gsub(/\\[|]/, "\376", line)
    }
    return split(line, f, "|")
}
function civil(day,    z, era, doe, yoe, doy, mp) {  # days since 1970-01-01 to Y, M, D
    z = day + 719468; era = int(z / 146097); doe = z - era * 146097
    yoe = int((doe - int(doe / 1460) + int(doe / 36524) - int(doe / 146096)) / 365)
    Y = yoe + era * 400; doy = doe - (365 * yoe + int(yoe / 4) - int(yoe / 100)); mp = int((5 * doy + 2) / 153)
    D = doy - int((153 * mp + 2) / 5) + 1; M = mp < 10 ? mp + 3 : mp - 9; if (M <= 2) Y++
}
function days(y, m, d,    era, yoe, doy) {
    if (m <= 2) y--
    era = int(y / 400); yoe = y - era * 400
    doy = int((153 * (m > 2 ? m - 3 : m + 9) + 2) / 5) + d - 1
    return era * 146097 + yoe * 365 + int(yoe / 4) - int(yoe / 100) + doy - 719468
}
function date(day) {
    if (!(day in date_of)) { civil(day); date_of[day] = sprintf("%04d-%02d-%02d", Y, M, D) }
    return date_of[day]
}
function time(v,    n, s, day, rest) {  # microseconds since 1970, never negative, as ISO 8601 in UTC
    if (v == "\\N" || v == "") return ""
    n = length(v)
    if (n < 7) v = substr("000000", n) v
    n = length(v)
    s = substr(v, 1, n - 6) + 0
    day = int(s / 86400)
    rest = s - day * 86400
    if (!(rest in clock)) clock[rest] = sprintf("T%02d:%02d:%02d.", int(rest / 3600), int(rest / 60) % 60, rest % 60)
    return date(day) clock[rest] substr(v, n - 5) "+00:00"
}
function seconds(us,    sign, whole) {  # with six decimals: a double holds microseconds of 285 years exactly
    if (us < 0) { sign = "-"; us = -us }
    whole = int(us / 1000000)
    if (whole * 1000000 > us) whole--
    return sprintf("%s%.0f.%06d", sign, whole, us - whole * 1000000)
}
function passed(since, until) { return seconds(until - since < 0 ? 0 : until - since) }  # a clock can be ahead
function is_null(v) { return v == "\\N" }
# The legal clock (GDPR Article 12(3), Regulation (EEC) 1182/71): one calendar month after the local day of the receipt.
function offset_at(s,    low, high, middle) {
    if (s < zone_from[1]) too_early = 1
    if (earliest == "" || s < earliest) earliest = s
    low = 1; high = zones
    while (low < high) {
        middle = int((low + high + 1) / 2)
        if (zone_from[middle] <= s) low = middle
        else high = middle - 1
    }
    return zone_offset[low]
}
function end_of(day,    i, local) {  # the instant at which the next local day begins, in seconds
    if (!(day in ends)) {
        # Where a change of the clocks skips or repeats midnight, it is the first of the two (as Python has fold=0).
        local = (day + 1) * 86400
        for (i = 1; i < zones; i++)
            if (local < zone_from[i + 1] + (zone_offset[i] > zone_offset[i + 1] ? zone_offset[i] : zone_offset[i + 1])) break
        ends[day] = local - zone_offset[i]
        if (ends[day] > latest) latest = ends[day]
    }
    return ends[day]
}
function months_after(day, months,    y, m, long) {
    civil(day)
    m = Y * 12 + M - 1 + months; y = int(m / 12); m = m % 12 + 1
    long = m == 2 ? 28 + (y % 4 == 0 && (y % 100 != 0 || y % 400 == 0)) : 30 + (m < 8 ? m % 2 : 1 - m % 2)
    return days(y, m, D < long ? D : long)
}
function deadline(at, extended, recorded_at,    s, day, latest) {  # sets due_on and due_at, in microseconds
    s = int(at / 1000000)
    day = int((s + offset_at(s) + 86400) / 86400) - 1  # the local day may be the one before 1970
    if (!(day in month_later)) month_later[day] = months_after(day, 1)
    due_on = month_later[day]
    due_at = end_of(due_on) * 1000000
    if (!is_null(extended) && recorded_at + 0 < due_at) {
        latest = months_after(day, 3)
        day = days(substr(extended, 1, 4) + 0, substr(extended, 6, 2) + 0, substr(extended, 9, 2) + 0)
        if (day > due_on) { due_on = day < latest ? day : latest; due_at = end_of(due_on) * 1000000 }
    }
}
# Not before this: the request that last saw another status was sent, or, where none had been seen, the submission.
function begin(seen, submitted, by) {
    if (!is_null(seen)) return seen
    if (!is_null(submitted) && !is_null(by) && submitted + 0 > by + 0) return by
    return submitted
}
function verdict(state, status, since, seen, done_after, done_by) {
    if (state == "attested" || state == "withdrawn") return state
    if (state == "done") {
        if (!is_null(done_by) && done_by + 0 <= due_at) return "met"
        return !is_null(done_after) && done_after + 0 >= due_at ? "missed" : "undecidable"
    }
    if (state == "lost") return "undecidable"
    if (as_of + 0 < due_at) return "pending"
    if (state == "failed") return "overdue"
    if (status == "not_found") seen = since
    return !is_null(seen) && seen + 0 >= due_at ? "overdue" : "undecidable"
}
# A row that must come next in a file.
function row(file, text,    n, i, parts, given) {
    n = 1
    parts[1] = text
    if (index(text, "\n")) n = split(text, parts, "\n")
    for (i = 1; i <= n; i++) {
        lines[file]++
        bytes[file] += length(parts[i]) + 1
        if ((getline given < file) <= 0) {
            differs(file, "it ends here, but the segments give: " shown(parts[i]))
            given = ""
        } else if ((given "") != (parts[i] ""))
            differs(file, "is `" shown(given) "`, but the segments give `" shown(parts[i]) "`")
    }
}
function differs(file, what) {
    if (!differing[file]++) difference[file] = "line " lines[file] ": " what
}
function finish(file,    given) {
    while ((getline given < file) > 0) {
        lines[file]++
        bytes[file] += length(given) + 1
        differs(file, "the segments do not give `" shown(given) "`")
    }
    if (!(file in sum)) return  # missing: told already
    if (differing[file] > 1) difference[file] = difference[file] " (and " (differing[file] - 1) " more lines differ)"
    else if (!differing[file] && size[file] != bytes[file]) difference[file] = "its end: not the bytes that the segments give"
    if (file in difference) finding(file, difference[file])
}
function job_rows(k,    a, b, c, d, e, start, state, submitted, registered, since, after, by, seen, left, most, wide, down) {
    split(registration[k], a, "|")  # jid, registered_at, registered_by, received_at then
    split(facts[k], b, "|")         # kind, reference, received_at, submitted_at, extended_on, recorded_at, amendments
    split(now[k], c, "|")           # state, status, last_seen_at, polls
    split(entry[k], d, "|")         # status_after, status_by
    split(ending[k], e, "|")        # ended_after, ended_by
    state = c[1]; submitted = b[4]; registered = a[2]
    start = !is_null(b[3]) ? b[3] : !is_null(submitted) ? submitted : registered
    deadline(start, b[5], b[6])
    after = e[1]; by = e[2]
    if (state == "done" || state == "failed" || state == "lost") after = begin(after, submitted, by)
    left = verdict(state, c[2], d[1], c[3], after, by)
    seen = name_cell "," cell(a[1]) "," b[1] "," cell(b[2])
    since = is_null(c[2]) ? "\\N" : begin(d[1], submitted, d[2])
    start = !is_null(submitted) ? submitted : registered
    row("jobs.csv", seen "," state "," cell(c[2]) "," time(since) "," time(d[2]) "," time(c[3]) "," time(submitted) "," \
        time(registered) "," cell(a[3]) "," time(b[3]) "," date(due_on) "," left "," time(after) "," time(by) "," \
        passed(start, is_null(by) ? as_of : by) "," c[4])
    wide = ""
    if (state == "open" || state == "failed" || state == "lost") {
        wide = int((due_at - as_of) / 86400000000)
        if (wide * 86400000000 > due_at - as_of) wide--
        wide = sprintf("%.0f", wide)
    }
    row("deadlines.csv", seen "," state "," time(b[3]) "," time(a[4]) "," b[7] "," \
        (!is_null(b[3]) ? "received" : !is_null(submitted) ? "submitted" : "registered") "," date(due_on) "," \
        time(sprintf("%.0f", due_at)) "," (is_null(b[5]) ? "" : b[5]) "," (state == "done" ? time(after) "," time(by) : ",") \
        "," left "," wide)
    if (state != "done") return
    most = is_null(submitted) ? "" : passed(submitted, by)
    wide = is_null(after) ? "" : seconds(by - after)
    down = b[1] == "export" && !is_null(after) ? time(sprintf("%.0f", after + 7 * 86400000000)) : ""
    row("durations.csv", seen "," time(submitted) "," time(registered) "," time(after) "," time(by) "," passed(start, is_null(after) ? start : after) "," \
        most "," wide "," down "," c[4])
}
function end_cluster(    k) {
    for (k = 1; k <= jobs; k++) if (!(k in hole)) job_rows(k)
    split("", registration); split("", facts); split("", now); split("", entry); split("", ending)
    split("", extended); split("", seq); split("", job); split("", hole); split("", earlier)
    jobs = 0
}
function is_time(v) { return v ~ /^[0-9]+$/ || v == "\\N" }
function is_date(v) { return v == "\\N" || v ~ /^[0-9][0-9][0-9][0-9]-[01][0-9]-[0-3][0-9]$/ }
function wrong(what) {
    if (!(path in told_here)) finding(path, "line " at ": " what)
    told_here[path] = 1
}
function source(n) {
    if (n != 12 || !is_number(f[4]) || !is_time(f[12])) return wrong("not a source")
    sources++
    put("sources", "source " f[4] " of " shown(cluster) ": " shown(plain(f[5]) plain(f[6])) ", recorded " time(f[12]) \
        flags(tolower(plain(f[5]))))
}
# Why a source may not be Elevate: a server on the same machine, or one that nobody proved (as `tracker audit verify`).
function flags(url,    host, flag) {
    host = url
    sub(/^[^:\/]*:\/\//, "", host)
    sub(/[\/?#].*/, "", host)
    sub(/^.*@/, "", host)
    if (host ~ /^\[/) flag = is_loopback_6(substr(host, 2, index(host "]", "]") - 2))
    else {
        sub(/:.*/, "", host)
        sub(/\.$/, "", host)
        flag = host ~ /^(.*\.)?localhost$/ || host ~ /^127(\.[0-9]+)+$/ || host == "0.0.0.0"
    }
    flag = flag ? "loopback" : ""
    if (index(url, "https:") != 1) flag = flag (flag == "" ? "" : ", ") "plain http"
    return flag == "" ? "" : " (" flag ")"
}
function is_loopback_6(host) {  # ::1, ::, or IPv4 as IPv6; zeros may be written out, or not
    sub(/%.*/, "", host)
    host = ":" host
    gsub(/:0+/, ":", host)
    gsub(/::+/, "::", host)
    return host == "::1" || host == "::" || host ~ /^::ffff:(127\.|7f[0-9a-f][0-9a-f]:|:$|\.0\.0\.0$)/
}
function gap(n) {
    if (n != 8 || !is_number(f[4]) || !is_time(f[5]) || !is_time(f[6])) return wrong("not a gap")
    gaps++
    row("gaps.csv", name_cell "," time(f[5]) "," time(f[6]) "," cell(f[7]) "," cell(f[8]) "," seconds(f[6] - f[5]))
}
function transition(n,    k, id, new, b) {
    if (n != 25 || !is_number(f[5]) || !is_number(f[6]) || !is_number(f[7]) || !is_time(f[13]) || !is_time(f[14]) \
        || !is_time(f[15]) || !is_number(f[17]) || !is_time(f[23]) || !is_time(f[24]) || !is_date(f[25])) \
        return wrong("not a transition")
    transitions++
    row("transitions.csv", number "," name_cell "," cell(f[4]) "," f[5] "," f[6] "," f[7] "," f[8] "," cell(f[9]) "," \
        cell(f[10]) "," cell(f[11]) "," f[12] "," time(f[13]) "," time(f[14]) "," time(f[15]) "," \
        cell(f[16]) "," f[17] "," cell(f[18]) "," cell(f[19]) "," cell(f[20]) "," cell(f[21]) "," cell(f[22]) "," \
        time(f[23]) "," time(f[24]) "," cell(f[25]))
    id = f[6]
    if (!(id in job)) {
        if (f[7] != 0) {
            if (first == 1) wrong("transition " f[7] " of job " id " comes without those before it")
            else if ((id in earlier) && f[7] != earlier[id] + 1) wrong("transition " f[7] " of job " id " after " earlier[id])
            earlier[id] = f[7]
            older++
            return
        }
        if (id in earlier) wrong("job " id " begins a second time")
        if (f[8] != "registered") wrong("job " id " does not begin with its registration")
        k = job[id] = ++jobs
        all_jobs++
        seq[k] = 0
        registration[k] = f[4] "|" f[14] "|" (is_null(f[18]) ? "" : f[18]) "|" f[23]
        facts[k] = f[21] "|" f[22] "|" f[23] "|" f[24] "|" f[25] "|" f[14] "|0"
        entry[k] = "\\N|\\N"
        ending[k] = "\\N|\\N"
    } else {
        k = job[id]
        if (f[7] != seq[k] + 1) wrong("transition " f[7] " of job " id " after " seq[k] ": one is missing, double or moved")
        if (index(registration[k], f[4] "|") != 1) wrong("job " id " had another jid before")
        seq[k] = f[7]
        if (f[8] == "amended") {
            split(facts[k], b, "|")
            facts[k] = f[21] "|" f[22] "|" f[23] "|" f[24] "|" f[25] "|" (f[25] == b[5] ? b[6] : f[14]) "|" b[7] + 1
        } else {
            if (f[8] == "observed" && f[10] "" != f[9] "") entry[k] = f[13] "|" f[14]
            ending[k] = f[12] == "open" ? "\\N|\\N" : f[8] == "attested" ? "\\N|" f[15] \
                : (f[8] == "withdrawn" ? f[14] : f[13]) "|" f[14]
        }
    }
    now[k] = f[12] "|" f[10] "|" f[13] "|" f[17]
}
function read_segment(    n, kind, id, p, i, low, high, rank, its) {
    at = 0; rank = 0; id = -1
    split("", low); split("", high)
    for (i = 1; i <= 3; i++) if (s[6 + i] != "-") { split(s[6 + i], p, "-"); low[i] = p[1]; high[i] = p[2] }
    while ((getline line < path) > 0) {
        at++
        n = split_line(line)
        kind = f[1] == "v1" ? (f[2] == "source" ? 1 : f[2] == "gap" ? 2 : f[2] == "transition" ? 3 : 0) : 0
        if (!kind) { wrong("no line of the record: " shown(line)); continue }
        if (plain(f[3]) != key "") wrong("of cluster " shown(f[3]) ", in a segment of " shown(cluster))
        its = f[kind == 3 ? 5 : 4]
        if (kind < rank || (kind == rank && its + 0 <= id + 0)) wrong("id " shown(its) " after " id ": out of order")
        else if (!(kind in low) || its + 0 < low[kind] + 0 || its + 0 > high[kind] + 0 || (kind != rank && its + 0 != low[kind] + 0))
            wrong("id " shown(its) " is not among those that checkpoint " number " names")
        if (kind != rank && rank && id + 0 != high[rank] + 0) wrong("the one before is not the last of its kind")
        rank = kind; id = its
        if (kind == 3) transition(n)
        else if (kind == 2) gap(n)
        else source(n)
    }
    close(path)
    if (at != s[4]) finding(path, at " lines, but checkpoint " number " says " s[4])
}
function heading(file, columns) { row(file, columns); files[++n_files] = file }
BEGIN {
    load_told()
    load_sums()
    for (file in told) if (file ~ /^(checkpoints|segments)\// || file == "about.txt") broken = 1
    while ((getline line < "timezone.csv") > 0) {
        if (++zone_lines == 1) {
            if (line != "from_epoch_seconds,offset_seconds") finding("timezone.csv", "line 1: not the heading")
            continue
        }
        if (line !~ /^-?[0-9]+,-?[0-9]+$/ || (zones && substr(line, 1, index(line, ",") - 1) + 0 <= zone_from[zones]))
            finding("timezone.csv", "line " zone_lines ": not `seconds,seconds`, or out of order")
        zones++
        zone_from[zones] = substr(line, 1, index(line, ",") - 1) + 0
        zone_offset[zones] = substr(line, index(line, ",") + 1) + 0
        # `date +%z` tells minutes. The last zone that was off by seconds, Liberia, gave that up in January 1972.
        if (zone_offset[zones] > 57600 || zone_offset[zones] < -57600 || (zone_offset[zones] % 60 && zone_from[zones] >= 63593070))
            finding("timezone.csv", "line " zone_lines ": no zone has that offset")
    }
    if (!zones && !("timezone.csv" in told)) finding("timezone.csv", "there is no offset in it")
    # First whether all segments are as they were sealed: what follows from one that is not is not told again.
    while ((getline line < (tmp "/sorted")) > 0) {
        split(line, s, "\t")
        path = s[6]
        n_segments++
        if (!(path in sum)) { if (!(path in told)) finding(path, "missing: checkpoint " s[2] " has it, of cluster " shown(s[1])) }
        else if (sum[path] != s[5]) finding(path, "not what checkpoint " s[2] " sealed: its SHA-256 is " sum[path])
    }
    close(tmp "/sorted")
    if (broken || findings || !zones) {
        put("skipped", "note: the CSV files were not computed anew, since what they follow from is not as it was sealed.")
        over()
    }
    heading("transitions.csv", "checkpoint,cluster,jid,id,job_id,seq,action,from_status,to_status,from_state,to_state," \
        "last_seen_at,observed_at,server_date,source_id,polls,actor,anomaly,reason,kind,reference,received_at," \
        "submitted_at,extended_on")
    heading("gaps.csv", "cluster,began_at,ended_at,cause,detail,seconds")
    heading("jobs.csv", "cluster,jid,kind,reference,state,status,status_after,status_by,seen_at,submitted_at," \
        "registered_at,registered_by,received_at,deadline_on,verdict,ended_after,ended_by,age_seconds,polls")
    heading("durations.csv", "cluster,jid,kind,reference,submitted_at,registered_at,done_after,done_by,seconds_min," \
        "seconds_max,uncertainty_seconds,download_by,polls")
    heading("deadlines.csv", "cluster,jid,kind,reference,state,received_at,received_at_first,amendments,basis," \
        "deadline_on,deadline_at,extended_on,done_after,done_by,verdict,days_left")
    while ((getline line < (tmp "/sorted")) > 0) {
        split(line, s, "\t")
        if (s[1] "" != cluster "") {
            end_cluster()
            cluster = s[1]
            key = cluster
            name_cell = cell(escaped(key))
            n_clusters++
        }
        number = s[2]
        path = s[6]
        read_segment()
    }
    end_cluster()
    if (earliest != "") put("counted", sprintf("%.0f %.0f", earliest, latest + 1))
    if (too_early) finding("timezone.csv", "it begins after the first day that a deadline is counted from")
    for (i = 1; i <= n_files; i++) finish(files[i])
    # What about.txt counts, if nothing else is wrong with it.
    while ((getline line < "about.txt") > 0) about[substr(line, 1, index(line, ": ") - 1)] = substr(line, index(line, ": ") + 2)
    split("segments transitions transitions_of_jobs_begun_earlier jobs", names, " ")
    split(n_segments + 0 " " transitions + 0 " " older + 0 " " all_jobs + 0, right, " ")
    for (i = 1; i <= 4; i++) if (about[names[i]] "" != right[i] "") {
        finding("about.txt", names[i] " is `" shown(about[names[i]]) "`, but the segments have `" right[i] "`")
        break
    }
    put("counts", n_segments + 0 " segments, " transitions + 0 " transitions of " all_jobs + 0 " jobs, " gaps + 0 " gaps, " \
        sources + 0 " sources, " n_clusters + 0 " clusters" (older ? "; " older " transitions of jobs begun earlier" : ""))
    over()
}'

# -- 5. The time zone --------------------------------------------------------------------------------------------

# The instants at which the zone's offset changes are looked up; and that there are no others, every six days from the
# first to the last that a deadline was counted over: since 1969 no zone took a change back before 6.9 days were over.
earliest=0 latest=0
[ ! -s "$tmp/counted" ] || read -r earliest latest <"$tmp/counted"
zone_file=${TZDIR:-/usr/share/zoneinfo}/$zone
compared="$zone, which nobody compared with any zone data"
case $zone in
    '') is_told about.txt || finding about.txt "timezone is missing" ;;
    /* | *..* | *[!A-Za-z0-9_+/-]*) finding about.txt "timezone is no name of a time zone" ;;
    *)
        if is_told timezone.csv; then
            :
        elif [ -f "$zone_file" ] && [ "$(TZ=UTC0 date -d @86400 +%Y-%m-%d 2>/dev/null)" = 1970-01-02 ]; then
            run nothing -v earliest="$earliest" -v latest="$latest" "$common"'
            function offset(seconds,    v) {  # as `date +%z` says it
                v = seconds < 0 ? -seconds : seconds
                return sprintf("%s%02d%02d", seconds < 0 ? "-" : "+", int(v / 3600), int(v / 60) % 60)
            }
            function say(at) { put("offsets", sprintf("%d %.0f %s", number, at, offset(its_offset))) }
            function stretch(upto) {  # what a line says of the time up to the next
                for (at = from > earliest ? from : earliest; at < upto && at < latest; at += 6 * 86400) say(at)
                say(upto - 1)
            }
            BEGIN {
                while ((getline line < "timezone.csv") > 0) if (++lines > 1) {
                    split(line, row, ",")
                    if (lines > 2) stretch(row[1] + 0)
                    number = lines; from = row[1] + 0; its_offset = row[2]
                    say(from)
                }
                if (latest > from) stretch(latest)
                over()
            }'
            while read -r number at said; do
                here=$(TZ=$zone date -d "@$at" +%z)
                if [ "$here" != "$said" ]; then
                    finding timezone.csv "line $number: $said at @$at, but this machine's zone data say $here ($zone)"
                    break
                fi
            done <"$tmp/offsets"
            compared=$zone
        else
            note "timezone.csv could not be compared with this machine's zone data: it has none of $zone, or a date" \
                "without -d @SECONDS. The deadlines are computed with the offsets in timezone.csv."
        fi
        ;;
esac

# -- The verdict ---------------------------------------------------------------------------------------------------

# A changed file of which nothing more exact was said.
run nothing "$common"'
BEGIN {
    load_told()
    while ((getline line < (tmp "/changed")) > 0)
        if (!(line in told)) finding(line, "changed since the pack was made: not the SHA-256 in SHA256SUMS")
    over()
}'

cat "$tmp/sources"
printf '%s' "$notes"
cat "$tmp/skipped"
[ -z "$found" ] || not_ok
counts=$(cat "$tmp/counts")
can_write
[ "$last" -ge 1 ] && [ -n "$as_of" ] && [ -n "$counts" ] || stop "it did not come to its end"
printf 'OK: %s\n' "checkpoints 1 to $last, segments from checkpoint $first on, $scope: $counts.\
 The CSV files follow from them, as of $as_of, with the months of $compared." || stop "cannot write that it is OK"
