# Runs in the freezer's chroot: the standard module readline on libedit, whose licence allows it in a binary (GNU readline's
# does not). The definitions are what configure finds out about the libedit of this userland.
set -a
. /source/packaging/versions.env
. "/source/packaging/targets/$TARGET.env"
set +a
python=/opt/python/bin/python$PYTHON_VERSION
source=/cache/any/sources/$PYTHON_SOURCE/Modules/readline.c
include=/opt/python/include/python$PYTHON_VERSION
"$TRIPLET-gcc" -shared -fPIC -O2 -g0 -fstack-protector-strong -D_FORTIFY_SOURCE=2 -fwrapv -DNDEBUG -DPy_BUILD_CORE_MODULE \
    -DWITH_EDITLINE -DHAVE_RL_COMPLETION_MATCHES -DHAVE_RL_COMPLETION_APPEND_CHARACTER -DHAVE_RL_PRE_INPUT_HOOK \
    -DHAVE_RL_COMPLETION_DISPLAY_MATCHES_HOOK -DHAVE_RL_CATCH_SIGNAL -DHAVE_RL_RESIZE_TERMINAL \
    -I"$include" -I"$include/internal" -ffile-prefix-map=/cache/any/sources=. -Wl,-z,relro -Wl,-z,now \
    -o "$("$python" -c 'import sysconfig; print(sysconfig.get_path("platstdlib"))')/lib-dynload/readline$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')" \
    "$source" -ledit
"$python" -c 'import readline; assert readline.backend == "editline"'
