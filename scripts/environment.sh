#!/bin/sh
# Makes sure that the environment is whole before a target of the Makefile does its work:
#
#     sh scripts/environment.sh GOAL VENV LOCK
#
# A second call only compares two files. The first finds a Python, says how long GOAL takes and how much disk it needs,
# and leaves the installation to scripts/install.py.
set -eu

goal=$1 venv=$2 lock=$3
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
cd "$root"

# What a goal costs beyond the environment: minutes on 2 cores, and disk in MB. Rounded up from runs on a fresh clone; the
# figures of the environment for a GPU are an estimate.
case $goal in
    repro) work='the whole pipeline' minutes=15 megabytes=1300 ;;
    review) work='the replay' minutes=16 megabytes=2500 ;;
    demo) work='the pipeline on 200 images' minutes=3 megabytes=300 ;;
    test) work='the tests' minutes=10 megabytes=500 ;;
    bench) work='the benchmarks' minutes=150 megabytes=1500 ;;
    *) work='' minutes=0 megabytes=0 ;;
esac
case $lock in
    *gpu*) environment_minutes=6 environment_megabytes=8500 ;;
    *) environment_minutes=3 environment_megabytes=3300 ;;
esac

main() {
    check_git
    check_path
    install=''
    if ! environment_is_whole; then
        install=yes
        check_link
        find_python
    fi
    if [ "$install$work" ]; then announce; fi
    if [ "$install" ]; then "$python" -I -B scripts/install.py "$venv" "$lock"; fi
}

stop() {
    printf '%s\n' "$*" >&2
    exit 1
}

# The stamp is written last and holds the place and the lock that the environment was built from. So a half-finished
# installation has none, and it stops matching when the lock changes or the project moves (the commands in bin/ name
# their interpreter by its full path).
environment_is_whole() {
    [ -x "$venv/bin/python" ] && { pwd -P && cat "$lock"; } | cmp -s - "$venv/installed-from"
}

# The installer empties the folder first, and behind a link that may be somebody else's.
check_link() {
    if [ -L "$venv" ]; then
        stop "$venv is a link to $(readlink "$venv"), which was not built for this folder: remove the link, and make builds
an environment here."
    fi
}

check_git() {
    command -v git >/dev/null || stop "git not found: install it; DVC needs it."
    if [ -e .git ]; then return; fi
    case $goal in
        repro | demo | review)
            stop "This folder is no git clone, and DVC needs one. Clone the project, or make this copy a repository:
    git init && git add --all && git commit --message 'Source archive'
Without one, 'make help' and 'make test' work (tests that need a clone are skipped)." ;;
        test) echo "This folder is no git clone: tests that need one are skipped." ;;
    esac
}

check_path() {
    case $root in
        *:*) stop "The path of the project must not hold a colon, which separates entries of PATH: $root" ;;
    esac
}

probe='
import sys
version = "%d.%d" % sys.version_info[:2]
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.stdout.write("Python " + version)
else:
    try:
        import ensurepip, venv, bz2, ctypes, lzma, sqlite3, ssl
    except ImportError as error:
        hint = "; on Debian and Ubuntu: apt install python%s-venv" % version if error.name == "ensurepip" else ""
        sys.stdout.write("Python %s without its module %s%s" % (version, error.name, hint))
'

try_python() {
    reason=$("$1" -I -c "$probe" 2>/dev/null </dev/null) || reason='does not start'
    if [ -z "$reason" ]; then
        python=$1
        return 0
    fi
    found="${found:+$found, }$1 ($reason)"
    return 1
}

# Sets `python`. 3.11 comes first because the committed dvc.lock was made with it.
find_python() {
    leave_environment
    found=''
    if [ "${PYTHON:-}" ]; then
        if try_python "$PYTHON"; then return; fi
    else
        for candidate in python3.11 python3.12 python3.13 python3 python; do
            if command -v "$candidate" >/dev/null && try_python "$candidate"; then return; fi
        done
    fi
    stop "Python 3.11, 3.12 or 3.13 is needed, found: ${found:-none}. Install one, or name it: make $goal PYTHON=/path/to/python3.12"
}

# With the environment activated, its own python would be found first, and could not rebuild what it runs from.
leave_environment() {
    entry=":$root/$venv/bin:"
    path=":$PATH:"
    case $path in
        *"$entry"*)
            path="${path%%"$entry"*}:${path#*"$entry"}"
            path=${path#:}
            PATH=${path%:} ;;
    esac
}

announce() {
    needed=0
    echo "make $goal, on 2 cores and a usual connection:"
    if [ "$install" ]; then
        estimate "environment, in $venv" "$environment_minutes" "$environment_megabytes"
    fi
    if [ "$goal" = repro ] && [ -d results/runs ]; then
        echo "  what changed since the last run; $work would take about $minutes min"
    elif [ "$work" ]; then
        estimate "$work" "$minutes" "$megabytes"
    fi
    free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1024) }')
    if [ "$free" -lt "$needed" ]; then
        stop "Not enough disk space in $root: $(gigabytes "$needed") needed, $(gigabytes "$free") free."
    fi
}

estimate() {
    printf '  %-28s about %2d min, %s of disk\n' "$1" "$2" "$(gigabytes "$3")"
    needed=$((needed + $3))
}

gigabytes() {
    awk -v megabytes="$1" 'BEGIN { printf "%.1f GB", megabytes / 1000 }'
}

main
