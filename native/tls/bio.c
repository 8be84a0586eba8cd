/* tls/bio.c: the BIO between OpenSSL and the io of the current call. OpenSSL reads and writes the core's buffers directly.
 *
 * Invariant: a read without input and a write without room ask for a repetition. They never report an end of file. The one
 * error of a read is a handshake message that is too long.
 */
#include <string.h>

#include <openssl/err.h>

#include "tls/context.h"

static wire_t *wire_of(BIO *bio) { return BIO_get_data(bio); }

static int io_read(BIO *bio, char *into, size_t room, size_t *got) {
    wire_t *wire = wire_of(bio);
    bq_secure_io_t *io = wire->io;
    uint32_t left = io->in_size - io->in_used;
    *got = room < left ? room : left;
    BIO_clear_retry_flags(bio);
    if (*got == 0) {
        BIO_set_retry_read(bio);
        return -1;
    }
    if (!wire->seen.over && !handshake_size_add(&wire->seen, io->in + io->in_used, *got)) {
        ERR_raise(ERR_LIB_SSL, SSL_R_EXCESSIVE_MESSAGE_SIZE);
        return -1;
    }
    memcpy(into, io->in + io->in_used, *got);
    io->in_used += (uint32_t)*got;
    return 1;
}

static int io_write(BIO *bio, const char *from, size_t size, size_t *taken) {
    bq_secure_io_t *io = wire_of(bio)->io;
    uint32_t room = io->out_size - io->out_used;
    *taken = size < room ? size : room;
    BIO_clear_retry_flags(bio);
    if (*taken == 0) {
        BIO_set_retry_write(bio);
        return -1; /* SSL_shutdown takes 0 for success */
    }
    memcpy(io->out + io->out_used, from, *taken);
    io->out_used += (uint32_t)*taken;
    return 1;
}

static long io_control(BIO *bio, int command, long number, void *pointer) {
    (void)bio;
    (void)number;
    (void)pointer;
    return command == BIO_CTRL_FLUSH; /* nothing is kept here; every other request is unknown */
}

static int io_create(BIO *bio) {
    BIO_set_init(bio, 1);
    return 1;
}

BIO_METHOD *bio_methods(void) {
    /* OpenSSL gives this number to no one else, and a process has few numbers to give. */
    BIO_METHOD *methods = BIO_meth_new(BIO_TYPE_SOURCE_SINK | BIO_TYPE_START, "blipmq");
    if (methods && BIO_meth_set_read_ex(methods, io_read) && BIO_meth_set_write_ex(methods, io_write) &&
        BIO_meth_set_ctrl(methods, io_control) && BIO_meth_set_create(methods, io_create))
        return methods;
    BIO_meth_free(methods);
    return NULL;
}

BIO *bio_over(const BIO_METHOD *methods, wire_t *wire) {
    BIO *bio = BIO_new(methods);
    if (bio) BIO_set_data(bio, wire);
    return bio;
}
