import type { Db } from 'mongodb'
import type { PoolOptions, SqliteDatabase } from 'fastify-pool'

export type Database = Db | SqliteDatabase
export interface Note { readonly id: string, readonly text: string, readonly at: string }

interface Notes {
  add (note: Note): Promise<void>
  get (id: string): Promise<Note | undefined>
  list (): Promise<Note[]>
}

/** MongoDB where the URL says so; else it is SQLite's file. */
export function databaseOptions (url: string): PoolOptions {
  if (/^mongodb(\+srv)?:/.test(url)) return { backend: 'mongodb', url, max: 20 }
  return {
    backend: 'sqlite',
    url,
    onConnect: (db) => {
      (db as SqliteDatabase)
        .exec('create table if not exists notes (id text primary key, text text not null, at text not null)')
    },
  }
}

/** The same three questions to either database. */
export function notesOf (db: Database): Notes {
  return 'prepare' in db ? inSqlite(db) : inMongo(db)
}

function inSqlite (db: SqliteDatabase): Notes {
  return {
    async add ({ id, text, at }) { db.prepare('insert into notes (id, text, at) values (?, ?, ?)').run(id, text, at) },
    async get (id) { return (db.prepare('select id, text, at from notes where id = ?').all(id) as Note[])[0] },
    async list () { return db.prepare('select id, text, at from notes order by at desc limit 20').all() as Note[] },
  }
}

function inMongo (db: Db): Notes {
  interface Stored { _id: string, text: string, at: string }
  const notes = db.collection<Stored>('notes')
  const toNote = ({ _id, text, at }: Stored): Note => ({ id: _id, text, at })
  return {
    async add ({ id, text, at }) { await notes.insertOne({ _id: id, text, at }) },
    async get (id) {
      const found = await notes.findOne({ _id: id })
      return found === null ? undefined : toNote(found)
    },
    async list () { return (await notes.find().sort({ at: -1 }).limit(20).toArray()).map(toNote) },
  }
}
