#!/usr/bin/env bash
# The first process of a container: runs BentoML's own entry point and passes SIGTERM on to it.
# Linux keeps from the first process every signal that it has no handler for, and Python has none for SIGTERM
# while it starts: a container that is stopped in its first seconds would go on until it is killed.

bash "$BENTO_PATH/env/docker/entrypoint.sh" "$@" &
service=$!
trap 'kill -TERM $service' TERM INT

# A signal ends `wait` too, with a status above 128.
while wait $service; status=$?; ((status > 128)) && kill -0 $service 2>/dev/null; do :; done
if ((status > 128)); then
    # Where the service ended while the signal was passed on, its own status is still to be had.
    wait $service 2>/dev/null
    own=$?
    ((own == 127)) || status=$own
fi
exit $status
