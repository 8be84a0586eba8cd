#define _GNU_SOURCE
#include "measure.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

uint64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int read_small_file(const char *path, char *text, size_t room) {
    FILE *file = fopen(path, "r");
    if (!file) return -1;
    size_t size = fread(text, 1, room - 1, file);
    text[size] = 0;
    fclose(file);
    return size ? 0 : -1;
}

static uint64_t threads_cpu_ns(pid_t pid) {
    char path[320], text[128];
    uint64_t sum = 0;
    snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    DIR *tasks = opendir(path);
    if (!tasks) return 0;
    for (struct dirent *task; (task = readdir(tasks));) {
        unsigned long long on_cpu;
        if (task->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "/proc/%d/task/%.20s/schedstat", (int)pid, task->d_name);
        if (read_small_file(path, text, sizeof text) == 0 && sscanf(text, "%llu", &on_cpu) == 1) sum += on_cpu;
    }
    closedir(tasks);
    return sum;
}

static uint64_t status_bytes(const char *status, const char *key) {
    unsigned long long kib;
    const char *line = strstr(status, key);
    return line && sscanf(line + strlen(key), " %llu", &kib) == 1 ? kib * 1024 : 0;
}

int process_read(pid_t pid, process_t *process) {
    char path[64], text[4096];
    unsigned long user, system;
    memset(process, 0, sizeof *process);
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    if (read_small_file(path, text, sizeof text) < 0) return -1;
    const char *after_name = strrchr(text, ')'); /* the name may contain spaces and parentheses: count fields from its end */
    if (!after_name || sscanf(after_name + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) != 2)
        return -1;
    process->user_s = (double)user / (double)sysconf(_SC_CLK_TCK);
    process->system_s = (double)system / (double)sysconf(_SC_CLK_TCK);
    process->cpu_ns = threads_cpu_ns(pid);
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    if (read_small_file(path, text, sizeof text) < 0) return -1;
    process->rss_bytes = status_bytes(text, "VmRSS:");
    process->peak_bytes = status_bytes(text, "VmHWM:");
    return 0;
}

double machine_cpu_s(void) {
    char text[512];
    unsigned long long user, nice, system, idle, wait, interrupt, soft, steal;
    if (read_small_file("/proc/stat", text, sizeof text) < 0) return 0;
    if (sscanf(text, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &user, &nice, &system, &idle, &wait, &interrupt, &soft,
               &steal) != 8)
        return 0;
    return (double)(user + nice + system + interrupt + soft + steal) / (double)sysconf(_SC_CLK_TCK);
}

static double timeval_s(struct timeval time) { return (double)time.tv_sec + (double)time.tv_usec / 1e6; }

double own_cpu_s(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return timeval_s(usage.ru_utime) + timeval_s(usage.ru_stime);
}

/* Values below 128 have a bucket each; above, bucket = (exponent, the seven bits below the leading one). */
static unsigned bucket_of(uint64_t value) {
    if (value < 1u << HISTOGRAM_PARTS_LOG2) return (unsigned)value;
    unsigned shift = 63u - (unsigned)__builtin_clzll(value) - HISTOGRAM_PARTS_LOG2;
    return (shift << HISTOGRAM_PARTS_LOG2) + (unsigned)(value >> shift);
}

static uint64_t bucket_middle(unsigned bucket) {
    if (bucket < 2u << HISTOGRAM_PARTS_LOG2) return bucket;
    unsigned shift = (bucket >> HISTOGRAM_PARTS_LOG2) - 1;
    uint64_t low = (uint64_t)(bucket - (shift << HISTOGRAM_PARTS_LOG2)) << shift;
    return low + ((1ull << shift) >> 1);
}

void histogram_add(histogram_t *histogram, uint64_t value_ns) {
    histogram->count++;
    if (value_ns > histogram->max_ns) histogram->max_ns = value_ns;
    histogram->buckets[bucket_of(value_ns)]++;
}

uint64_t histogram_quantile_ns(const histogram_t *histogram, double quantile) {
    uint64_t wanted = (uint64_t)(quantile * (double)histogram->count), seen = 0;
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
        seen += histogram->buckets[i];
        if (seen > wanted) return bucket_middle(i);
    }
    return histogram->max_ns;
}
