# Sourced by quickstart.sh and test.sh, from the repository's root: .venv with the pinned packages, reused while it is current.
# PYTHON names the interpreter; TORCH_INDEX_URL the index to take torch from (else pip's own configuration decides).

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

# Finds a Python of at least 3.11, or says how to get one.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: needs Python 3.11 or newer, python3 is $(python3 --version 2>&1); install one and set PYTHON=/path/to/python3.11" >&2
    return 2
}

# Installs Debian packages if this is root, else shows the command that does.
debian_packages() {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@"
    else
        echo "error: missing system packages; run: sudo apt-get install $*" >&2
        return 2
    fi
}

make_venv() {
    [ -x .venv/bin/python ] && [ -x .venv/bin/pip ] && return
    local python
    python=$(find_python) || return
    "$python" -c 'import ensurepip, venv' 2>/dev/null || debian_packages python3-venv || return
    echo "making .venv with $("$python" --version)"
    "$python" -m venv .venv
}

wanted() {
    cat pyproject.toml constraints.txt | .venv/bin/python -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

# is_installed base | dev: succeeds if there is nothing to install.
is_installed() {
    [ -x .venv/bin/python ] && [ -x .venv/bin/pip ] || return 1
    local stamp
    for stamp in .venv/.installed-dev ".venv/.installed-$1"; do
        [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(wanted)" ] && return
    done
    return 1
}

# install base | dev
install() {
    is_installed "$1" && return
    make_venv || return
    local target=.
    [ "$1" = base ] || target=".[$1]"
    if [ -n "${TORCH_INDEX_URL:-}" ]; then
        .venv/bin/pip install -c constraints.txt --index-url "$TORCH_INDEX_URL" torch || return
    fi
    .venv/bin/pip install -c constraints.txt -e "$target" || return
    wanted > ".venv/.installed-$1"
}
