/* replay.c: runs the files named on the command line through a fuzz target, without a fuzzer, with any compiler.
 *
 * Invariant: result 0 means that all files have been run. Each file name is printed to standard error before the file is run.
 */
#include "fuzz.h"

static int replay(const char *path) {
    FILE *file = fopen(path, "rb");
    uint8_t *bytes = NULL;
    if (!file || fseek(file, 0, SEEK_END)) return -1;
    long size = ftell(file);
    rewind(file);
    bytes = malloc(size > 0 ? (size_t)size : 1); /* exact size, so that a read beyond it is detected */
    bool whole = bytes && size >= 0 && fread(bytes, 1, (size_t)size, file) == (size_t)size;
    fclose(file);
    if (whole) LLVMFuzzerTestOneInput(bytes, (size_t)size);
    free(bytes);
    return whole ? 0 : -1;
}

int main(int count, char **paths) {
    for (int i = 1; i < count; i++) {
        fprintf(stderr, "%s\n", paths[i]);
        if (replay(paths[i]) == 0) continue;
        perror(paths[i]);
        return 2;
    }
    return 0;
}
