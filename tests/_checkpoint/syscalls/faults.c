/* Fails one call of the system, or all from one on, among those that name something below a directory.

   Preloaded into a process, it stands before the C library's functions, for Python and for MLX alike. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

enum { PASS = 0, SHORT = -1, KILL = -2 }; /* what a gate answers; a positive number is an errno */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char below[PATH_MAX];
static int armed, count, first, last, fault, hits;
static char calls[1 << 16];

/* Arms the n-th call, and those after it up to another; n of 0 only counts. */
void faults_arm(const char *directory, int from, int to, int what) {
  pthread_mutex_lock(&mutex);
  snprintf(below, sizeof below, "%s", directory);
  count = hits = 0, calls[0] = 0, first = from, last = to, fault = what, armed = 1;
  pthread_mutex_unlock(&mutex);
}

void faults_disarm(void) {
  pthread_mutex_lock(&mutex);
  armed = 0;
  pthread_mutex_unlock(&mutex);
}

int faults_count(void) { return count; }
int faults_hits(void) { return hits; }
const char *faults_calls(void) { return calls; }

static int under(const char *path) { return path && !strncmp(path, below, strlen(below)); }

static int held(int descriptor) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  long length = syscall(SYS_readlink, link, path, sizeof path - 1);
  if (length <= 0) return 0;
  path[length] = 0;
  return under(path);
}

static int named(int directory, const char *path) {
  return path && (path[0] == '/' || directory == AT_FDCWD ? under(path) : held(directory));
}

/* Count a call and say what becomes of it. */
static int gate(const char *name, int ours, int divisible) {
  int answer = PASS;
  if (!armed || !ours) return PASS;
  pthread_mutex_lock(&mutex);
  if (armed) {
    count++;
    size_t used = strlen(calls);
    if (used + 32 < sizeof calls) snprintf(calls + used, 32, "%s ", name);
    if (first && count >= first && count <= last && (fault != SHORT || divisible)) answer = fault, hits++;
  }
  pthread_mutex_unlock(&mutex);
  if (answer == KILL && !divisible) raise(SIGKILL);
  return answer;
}

#define REAL(type, name) \
  static type (*real)(); \
  if (!real) real = (type(*)())dlsym(RTLD_NEXT, #name)

#define FAILS(answer, failed) \
  if ((answer) > 0) return errno = (answer), failed

#define WRAP(name, type, failed, ours, parameters, arguments) \
  type name parameters { \
    REAL(type, name); \
    int answer = gate(#name, ours, 0); \
    FAILS(answer, failed); \
    return real arguments; \
  }

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(int, name); \
    va_list list; \
    va_start(list, flags); \
    int mode = va_arg(list, int), answer = gate("open", under(path), 0); \
    va_end(list); \
    FAILS(answer, -1); \
    return real(path, flags, mode); \
  }
#define OPENAT(name) \
  int name(int directory, const char *path, int flags, ...) { \
    REAL(int, name); \
    va_list list; \
    va_start(list, flags); \
    int mode = va_arg(list, int), answer = gate("openat", named(directory, path), 0); \
    va_end(list); \
    FAILS(answer, -1); \
    return real(directory, path, flags, mode); \
  }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

/* Half of what was asked for is done; a killed process has done half of its last write. */
#define TRANSFER(name, kind, buffer_type) \
  ssize_t name(int descriptor, buffer_type buffer, size_t size) { \
    REAL(ssize_t, name); \
    int answer = gate(kind, held(descriptor), 1); \
    FAILS(answer, -1); \
    ssize_t done = real(descriptor, buffer, answer < 0 && size > 1 ? size / 2 : size); \
    if (answer == KILL) raise(SIGKILL); \
    return done; \
  }
TRANSFER(read, "read", void *)
TRANSFER(write, "write", const void *)

#define TRANSFER_AT(name, kind, buffer_type) \
  ssize_t name(int descriptor, buffer_type buffer, size_t size, off_t offset) { \
    REAL(ssize_t, name); \
    int answer = gate(kind, held(descriptor), 1); \
    FAILS(answer, -1); \
    ssize_t done = real(descriptor, buffer, answer < 0 && size > 1 ? size / 2 : size, offset); \
    if (answer == KILL) raise(SIGKILL); \
    return done; \
  }
TRANSFER_AT(pread, "pread", void *)
TRANSFER_AT(pread64, "pread", void *)
TRANSFER_AT(pwrite, "pwrite", const void *)
TRANSFER_AT(pwrite64, "pwrite", const void *)

/* As on Linux, a close that fails has closed. */
int close(int descriptor) {
  REAL(int, close);
  int answer = gate("close", armed && held(descriptor), 0), done = real(descriptor);
  FAILS(answer, -1);
  return done;
}

WRAP(fsync, int, -1, held(d), (int d), (d))
WRAP(fdatasync, int, -1, held(d), (int d), (d))
WRAP(ftruncate, int, -1, held(d), (int d, off_t n), (d, n))
WRAP(ftruncate64, int, -1, held(d), (int d, off_t n), (d, n))
WRAP(lseek, off_t, -1, held(d), (int d, off_t n, int w), (d, n, w))
WRAP(lseek64, off_t, -1, held(d), (int d, off_t n, int w), (d, n, w))
WRAP(flock, int, -1, held(d), (int d, int o), (d, o))
WRAP(fstat, int, -1, held(d), (int d, struct stat *s), (d, s))
WRAP(fstat64, int, -1, held(d), (int d, struct stat64 *s), (d, s))
WRAP(stat, int, -1, under(p), (const char *p, struct stat *s), (p, s))
WRAP(stat64, int, -1, under(p), (const char *p, struct stat64 *s), (p, s))
WRAP(lstat, int, -1, under(p), (const char *p, struct stat *s), (p, s))
WRAP(lstat64, int, -1, under(p), (const char *p, struct stat64 *s), (p, s))
WRAP(fstatat, int, -1, named(d, p), (int d, const char *p, struct stat *s, int f), (d, p, s, f))
WRAP(fstatat64, int, -1, named(d, p), (int d, const char *p, struct stat64 *s, int f), (d, p, s, f))
WRAP(statvfs, int, -1, under(p), (const char *p, struct statvfs *s), (p, s))
WRAP(statvfs64, int, -1, under(p), (const char *p, struct statvfs64 *s), (p, s))
WRAP(mkdir, int, -1, under(p), (const char *p, mode_t m), (p, m))
WRAP(rmdir, int, -1, under(p), (const char *p), (p))
WRAP(unlink, int, -1, under(p), (const char *p), (p))
WRAP(unlinkat, int, -1, named(d, p), (int d, const char *p, int f), (d, p, f))
WRAP(rename, int, -1, under(p), (const char *p, const char *q), (p, q))
WRAP(renameat, int, -1, named(d, p), (int d, const char *p, int e, const char *q), (d, p, e, q))
WRAP(link, int, -1, under(q), (const char *p, const char *q), (p, q))
WRAP(access, int, -1, under(p), (const char *p, int m), (p, m))
WRAP(opendir, DIR *, NULL, under(p), (const char *p), (p))
WRAP(fdopendir, DIR *, NULL, held(d), (int d), (d))
WRAP(readdir, struct dirent *, NULL, held(dirfd(d)), (DIR *d), (d))
WRAP(readdir64, struct dirent64 *, NULL, held(dirfd(d)), (DIR *d), (d))
