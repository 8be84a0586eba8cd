/* wal_model.h: a WAL and a list of everything that was appended to it. The model knows which records may be lost after a fault.
 *
 * Invariant: all records up to `acked` were durable, or were recovered once and served from then on: they must exist forever.
 * Later records, up to next_lsn, may exist, but only without a gap. Existing records have the bytes that were appended.
 */
#ifndef WAL_MODEL_H
#define WAL_MODEL_H

#include "wal/wal_internal.h"
#include "sim_disk.h"

#define MODEL_LSN_MAX 8192u

typedef struct model {
    sim_disk_t *disk;
    wal_t *wal;
    wal_config_t config;
    uint64_t random, seed;
    uint32_t tags[MODEL_LSN_MAX]; /* tag of the last record appended under each LSN; it determines size and bytes */
    uint64_t next_lsn, acked, opens;
    uint64_t checkpoint_lsn, keep_from; /* of the last confirmed checkpoint, and the highest keep_from ever requested */
    uint64_t visit_next;                /* used during recovery */
    bool visited_checkpoint;
    wal_report_t report;
    char fault[200]; /* first error found; empty: none */
} model_t;

void model_init(model_t *model, sim_disk_t *disk, uint64_t seed);
uint64_t model_random(model_t *model, uint64_t below);
int model_open(model_t *model);                 /* returns wal_open's result after all possible checks */
void model_run(model_t *model, uint32_t steps); /* random work; ends early if the disk stops or the WAL cannot be opened */
void model_append(model_t *model, uint32_t count);
void model_commit(model_t *model);
void model_checkpoint(model_t *model);
bool model_settled(model_t *model);   /* true: the WAL has an active segment, so it serves everything it has found */
void model_read_back(model_t *model); /* read all kept records through the read thread */
void model_close(model_t *model);     /* clean close, if the disk allows it */
void model_kill(model_t *model);      /* the process ends during its next action; the page cache stays */
uint32_t model_payload(uint32_t tag, uint8_t bytes[4096]);

#endif
