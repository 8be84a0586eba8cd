/* log_model.h: a WAL beside a list of what was appended to it: what may be lost, and what may not, after anything.
 *
 * Invariant: up to `acked` everything was durable, or was recovered once and served from then on: it must be there for ever.
 * From there to next_lsn it may be there, but only without a gap. What is there has the bytes that were appended.
 */
#ifndef LOG_MODEL_H
#define LOG_MODEL_H

#include "wal/wal_internal.h"
#include "sim_disk.h"

#define MODEL_LSN_MAX 8192u

typedef struct model {
    sim_disk_t *disk;
    wal_t *wal;
    wal_config_t config;
    uint64_t random, seed;
    uint32_t tags[MODEL_LSN_MAX]; /* what was appended last under each LSN; size and bytes follow from it */
    uint64_t next_lsn, acked, opens;
    uint64_t checkpoint_lsn, keep_from; /* of the last checkpoint that was confirmed, and the highest keep_from ever asked for */
    uint64_t visit_next;                /* while recovering */
    bool visited_checkpoint;
    wal_report_t report;
    char fault[200]; /* what was found wrong; empty: nothing */
} model_t;

void model_init(model_t *model, sim_disk_t *disk, uint64_t seed);
uint64_t model_random(model_t *model, uint64_t below);
int model_open(model_t *model);                 /* wal_open's result, after all that can be checked then has been checked */
void model_run(model_t *model, uint32_t steps); /* random work; ends early when the disk stops or the WAL cannot be opened */
void model_append(model_t *model, uint32_t count);
void model_commit(model_t *model);
void model_checkpoint(model_t *model);
bool model_settled(model_t *model);   /* the WAL has a segment to go on in: no full disk keeps it from serving all it has found */
void model_read_back(model_t *model); /* every record that is kept, through the read thread */
void model_close(model_t *model);     /* in order, if the disk lets it */
void model_kill(model_t *model);      /* the process ends in the middle of whatever it does next; the page cache stays */
uint32_t model_payload(uint32_t tag, uint8_t bytes[4096]);

#endif
