/* A double of Pyxis, shaped after the options that Pyxis documents: https://github.com/NVIDIA/pyxis#usage
 *
 * It starts no container. srun accepts the options, and a task that asked for a container finds
 * what was asked for in PYXIS_DOUBLE_IMAGE, _MOUNTS, _WORKDIR, _NAME, _SAVE, _ENV, _MOUNT_HOME, _REMAP_ROOT,
 * _WRITABLE and _ENTRYPOINT. A flag that was not given is "unset", else "1" or "0".
 */

#include <slurm/spank.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

SPANK_PLUGIN(pyxis_double, 1)

enum { IMAGE, MOUNTS, WORKDIR, NAME, SAVE, ENV, MOUNT_HOME, REMAP_ROOT, WRITABLE, ENTRYPOINT, COUNT };

static const char *const variable[COUNT] = {
    "IMAGE", "MOUNTS", "WORKDIR", "NAME", "SAVE", "ENV", "MOUNT_HOME", "REMAP_ROOT", "WRITABLE", "ENTRYPOINT",
};
static char *given[COUNT];

/* An option's own number comes as `value`: twice its place in the list, and one more where a flag says no. */
static int take(int value, const char *argument, int remote)
{
    (void)remote;
    int at = value / 2;
    free(given[at]);
    given[at] = strdup(at < MOUNT_HOME ? argument : value % 2 ? "0" : "1");
    return given[at] == NULL ? -1 : 0;
}

#define TEXT(name, shown, at) {name, shown, "[pyxis double]", 1, 2 * (at), take}
#define YES(name, at) {name, NULL, "[pyxis double]", 0, 2 * (at), take}
#define NO(name, at) {name, NULL, "[pyxis double]", 0, 2 * (at) + 1, take}

struct spank_option spank_options[] = {
    TEXT("container-image", "[USER@][REGISTRY#]IMAGE[:TAG]|PATH", IMAGE),
    TEXT("container-mounts", "SRC:DST[:FLAGS][,SRC:DST...]", MOUNTS),
    TEXT("container-workdir", "PATH", WORKDIR),
    TEXT("container-name", "NAME", NAME),
    TEXT("container-save", "PATH", SAVE),
    TEXT("container-env", "NAME[,NAME...]", ENV),
    YES("container-mount-home", MOUNT_HOME),
    NO("no-container-mount-home", MOUNT_HOME),
    YES("container-remap-root", REMAP_ROOT),
    NO("no-container-remap-root", REMAP_ROOT),
    YES("container-writable", WRITABLE),
    NO("container-readonly", WRITABLE),
    YES("container-entrypoint", ENTRYPOINT),
    NO("no-container-entrypoint", ENTRYPOINT),
    SPANK_OPTIONS_TABLE_END,
};

int slurm_spank_task_init(spank_t spank, int count, char **arguments)
{
    (void)count;
    (void)arguments;
    if (given[IMAGE] == NULL && given[NAME] == NULL)
        return 0;
    for (int at = 0; at < COUNT; at++) {
        char name[64];
        snprintf(name, sizeof name, "PYXIS_DOUBLE_%s", variable[at]);
        if (spank_setenv(spank, name, given[at] != NULL ? given[at] : "unset", 1) != ESPANK_SUCCESS)
            return -1;
    }
    return 0;
}
