/* measure.h: measurements of a run: the clock, the broker's CPU and memory, and a latency histogram.
 *
 * Invariant: nothing here allocates or grows. A histogram covers every latency with a relative error below 1 %.
 */
#ifndef BENCH_MEASURE_H
#define BENCH_MEASURE_H

#include <stdint.h>
#include <sys/types.h>

uint64_t clock_ns(void); /* CLOCK_MONOTONIC */

typedef struct {
    uint64_t cpu_ns;     /* all running threads, from /proc/PID/task/TID/schedstat */
    double user_s;       /* /proc/PID/stat, including ended threads, in clock ticks */
    double system_s;     /* the same */
    uint64_t rss_bytes;  /* VmRSS */
    uint64_t peak_bytes; /* VmHWM: the highest RSS since the process started */
} process_t;

/* Returns 0, or -1 when the process is gone or may not be read; *process is zeroed then. */
int process_read(pid_t pid, process_t *process);
double own_cpu_s(void);
double machine_cpu_s(void); /* of all processors, in clock ticks */

/* Log-linear buckets: each power of two is divided into 128 equal parts. */
enum { HISTOGRAM_PARTS_LOG2 = 7, HISTOGRAM_BUCKETS = (64 - HISTOGRAM_PARTS_LOG2 + 1) << HISTOGRAM_PARTS_LOG2 };
typedef struct {
    uint64_t count, max_ns;
    uint64_t buckets[HISTOGRAM_BUCKETS];
} histogram_t;

void histogram_add(histogram_t *histogram, uint64_t value_ns);
uint64_t histogram_quantile_ns(const histogram_t *histogram, double quantile); /* 0 for an empty histogram */

#endif
