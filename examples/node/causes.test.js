'use strict';

// What a store said is in the errors; of a touch, on standard error. SOFTFAULT_ILL_STORE is the library of
// bindings-c/tests/languages/ill_store.c.
const assert = require('node:assert');
const { spawnSync } = require('node:child_process');
const os = require('node:os');
const { test } = require('node:test');
const koffi = require('koffi');
const { Runtime, SoftfaultError } = require('./softfault.js');

const PAGE = 4096, FAULT = 7, WRITEBACK = 11, FLUSH = 12, READ = 1, WRITE = 2;
const library = koffi.load(process.env.SOFTFAULT_ILL_STORE);
const Row = koffi.struct('ill_row', { answer: 'int', error: 'int', cause: 'uint32_t', store_errno: 'int' });
const rowAt = library.func('void *ill_row_at(size_t i, int is_flush)');
const answers = library.func('void ill_answers(int read, int write, int flush)');
const operations = library.func('void *ill_operations()');

function rows(isFlush) {
    const all = [];
    for (let row; (row = rowAt(all.length, isFlush ? 1 : 0)) !== null;)
        all.push(koffi.decode(row, Row));
    assert.ok(all.length >= 10);
    return all;
}

// Page 5 of the object is page 6 of the arena; only page 9 is ever dirty.
function mapped(options) {
    const rt = new Runtime({ cacheLimit: 4 << 20, ...options });
    const object = rt.fromStore(16 * PAGE, operations(), null, { label: 'the ill one', writable: true });
    const arena = rt.arena(16 * PAGE);
    arena.map(object, { offset: 3 * PAGE, objectOffset: 2 * PAGE, length: 8 * PAGE, writable: true });
    return { rt, object, arena };
}

function fails(call, want, kind, objectOffset, arenaOffset) {
    assert.throws(call, (e) => {
        assert.ok(e instanceof SoftfaultError);
        assert.deepStrictEqual([e.errno, e.kind], [want.error, kind], e.message);
        assert.deepStrictEqual(e.fault, {
            cause: want.cause, storeErrno: want.store_errno, object: 'the ill one', objectOffset, arenaOffset,
        });
        assert.ok(e.message.includes('the ill one'), e.message);
        return true;
    });
}

// A child of the second test.
if (process.env.SOFTFAULT_TEST_ANSWER !== undefined) {
    const { arena } = mapped({ reportSignals: true });
    const bytes = new Uint8Array(arena.buffer(6 * PAGE, PAGE));
    answers(Number(process.env.SOFTFAULT_TEST_ANSWER), 0, 0);
    process.exit(bytes[9]);
}

test('reads and syncs', () => {
    const { rt, object, arena } = mapped({});
    const flushes = rows(true);
    for (const [i, row] of rows(false).entries()) {
        answers(row.answer, 0, 0);
        fails(() => arena.read(6 * PAGE + 2, 1), row, FAULT, 5 * PAGE + 2, 6 * PAGE + 2);
        fails(() => arena.faultIn(6 * PAGE, PAGE), row, FAULT, 5 * PAGE, 6 * PAGE);
        answers(0, 0, 0);
        arena.write(10 * PAGE, Buffer.from('x'));
        answers(0, row.answer, 0);
        fails(() => object.sync(), row, WRITEBACK, 9 * PAGE, null);
        answers(0, 0, row.answer);
        fails(() => object.sync(), flushes[i], FLUSH, null, null);
        answers(0, 0, 0);
        object.sync();
        const last = rt.recentFailures();
        for (const [op, at] of [[READ, 5 * PAGE], [WRITE, 9 * PAGE]])
            assert.ok(last.some((f) => f.op === op && f.cause === row.cause && f.storeErrno === row.store_errno &&
                f.object === 'the ill one' && f.objectOffset === at && f.address === 0n), JSON.stringify(last.at(-1), String));
    }
    assert.throws(() => rt.open('/no/such/file'), (e) => e.fault === null && e.errno === os.constants.errno.ENOENT);
    arena.close();
    object.close();
    rt.close();
});

test('touches', () => {
    for (const row of rows(false)) {
        const env = { ...process.env, SOFTFAULT_TEST_ANSWER: String(row.answer) };
        delete env.NODE_TEST_CONTEXT;
        const out = spawnSync(process.execPath, [__filename], { env, encoding: 'utf8', timeout: 60000 });
        assert.strictEqual(out.signal, 'SIGBUS', out.stderr);
        assert.match(out.stderr, /byte 0x5009 of the ill one: ./);
        if (row.store_errno === os.constants.errno.ECONNRESET)
            assert.match(out.stderr, /Connection reset by peer/);
    }
});
